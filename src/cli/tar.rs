//! Writes a tar archive: the POSIX ustar format (IEEE Std 1003.1, pax, "ustar Interchange Format"), regular files only.

use std::io::{self, Write};

const BLOCK: usize = 512;

/// An archive on its way out. Without [`Archive::finish`] it is not complete.
pub struct Archive<W: Write> {
    out: W,
    mtime_s: u64,
}

impl<W: Write> Archive<W> {
    /// An empty one; every file in it is of this time, seconds since 1970.
    pub const fn new(out: W, mtime_s: u64) -> Self {
        Self { out, mtime_s }
    }

    /// Appends a file that only its owner may read. The name has at most 100 bytes.
    pub fn file(&mut self, name: &str, contents: &[u8]) -> io::Result<()> {
        if name.is_empty() || name.len() > 100 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name in an archive has 1 to 100 bytes"));
        }
        self.out.write_all(&header(name, contents.len() as u64, self.mtime_s))?;
        self.out.write_all(contents)?;
        self.out.write_all(&vec![0; contents.len().next_multiple_of(BLOCK) - contents.len()])
    }

    /// The two empty blocks that end an archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

fn header(name: &str, size: u64, mtime_s: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |offset: usize, text: &str| block[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    // Eleven octal digits hold 8 GiB, and times until 2242.
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{:011o}\0", mtime_s.min(0o77_777_777_777)));
    // The checksum counts its own field as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    put(265, "root");
    put(297, "root");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_systems_tar_reads_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let mut archive = Archive::new(std::fs::File::create(&path).unwrap(), 1_700_000_000);
        for (name, length) in [("b/empty", 0), ("b/block", 512), ("b/more", 513)] {
            archive.file(name, &vec![b'x'; length]).unwrap();
        }
        assert!(archive.file(&"n".repeat(101), b"").is_err());
        archive.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (3 + 1 + 2 + 2) * 512);
        let output = std::process::Command::new("tar").arg("-xvf").arg(&path).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (name, length) in [("b/empty", 0), ("b/block", 512), ("b/more", 513)] {
            assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), vec![b'x'; length]);
        }
    }
}
