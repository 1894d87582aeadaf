//! Where others reach this manager, when nobody said.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::exit::Failure;

/// Checks `HOST:PORT`.
pub fn check(flag: &str, address: &str) -> Result<(), Failure> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    let bare_v6 = address.parse::<Ipv6Addr>().is_ok();
    match port {
        Some(_) if !bare_v6 => Ok(()),
        _ => Err(Failure::usage(format!("{flag} {address} is not an address"))
            .with_hint("an address is HOST:PORT, such as 10.0.0.7:4242 or [fd00::7]:4242")),
    }
}

/// The address to advertise: what was asked for; else `None` when `listen` names an interface, because the node then
/// advertises what it listens on; else the machine's only global address with `listen`'s port.
pub fn choose(
    listen: &str,
    advertise: Option<&str>,
    interfaces: impl FnOnce() -> Vec<IpAddr>,
) -> Result<Option<String>, Failure> {
    if let Some(address) = advertise {
        return Ok(Some(address.to_owned()));
    }
    let Some((host, port)) = listen.rsplit_once(':') else { return Ok(None) };
    let unspecified = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if !unspecified {
        return Ok(None);
    }
    let mut found = interfaces();
    // As in the reference, IPv6 addresses count only on a machine without an IPv4 one.
    if found.iter().any(IpAddr::is_ipv4) {
        found.retain(IpAddr::is_ipv4);
    }
    match found.as_slice() {
        [IpAddr::V4(ip)] => Ok(Some(format!("{ip}:{port}"))),
        [IpAddr::V6(ip)] => Ok(Some(format!("[{ip}]:{port}"))),
        [] => Err(Failure::usage("this machine has no address that others could reach it at")
            .with_hint("to try skep on this machine alone, run `skep run --listen 127.0.0.1:4242`")),
        several => {
            let names: Vec<String> = several.iter().map(IpAddr::to_string).collect();
            Err(Failure::usage(format!(
                "this machine has several addresses ({}): which one do others reach?",
                names.join(", ")
            ))
            .with_hint(format!("name it: `--advertise {}:{port}`", names[0])))
        }
    }
}

/// The global addresses of this machine's interfaces, as the kernel's routing tables list them.
pub fn interfaces() -> Vec<IpAddr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = ipv4_addresses(&read("/proc/self/net/fib_trie"));
    found.extend(ipv6_addresses(&read("/proc/self/net/if_inet6")));
    found
}

/// Addresses that `/proc/net/fib_trie` marks as this host's own:
///
/// ```text
///            |-- 10.0.0.7
///               /32 host LOCAL
/// ```
fn ipv4_addresses(trie: &str) -> Vec<IpAddr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf);
        }
    }
    // The trie is printed once for every table that it belongs to.
    found.sort();
    found.dedup();
    found.retain(|ip| !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified());
    found.into_iter().map(IpAddr::V4).collect()
}

/// Lines of `/proc/net/if_inet6`: address, interface index, prefix length, scope (00 is global), flags, name; in hex.
fn ipv6_addresses(table: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [address, _, _, "00", flags, _] = fields.as_slice() {
            let flags = u32::from_str_radix(flags, 16).unwrap_or(u32::MAX);
            // IFA_F_TEMPORARY: changes every day.
            if let (Ok(bits), 0) = (u128::from_str_radix(address, 16), flags & 1) {
                found.push(IpAddr::V6(Ipv6Addr::from_bits(bits)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.7
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 169.254.3.4
        /32 host LOCAL
Local:
        |-- 10.0.0.7
           /32 host LOCAL
";

    #[test]
    fn own_addresses_are_read_from_the_kernels_tables() {
        assert_eq!(ipv4_addresses(TRIE), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        let table = "\
00000000000000000000000000000001 01 80 10 80 lo
fe800000000000000000000000000001 02 40 20 80 eth0
fd000000000000000000000000000007 02 40 00 80 eth0
fd00000000000000000000000000beef 02 40 00 01 eth0
";
        assert_eq!(ipv6_addresses(table), ["fd00::7".parse::<IpAddr>().unwrap()]);
        assert!(ipv4_addresses("nonsense\n|-- x\n/32 host LOCAL").is_empty());
    }

    #[test]
    fn the_advertised_address() {
        let check = |listen, advertise, found: &[&str]| {
            let found = found.iter().map(|ip| ip.parse().unwrap()).collect();
            choose(listen, advertise, move || found)
        };
        let one = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(check("0.0.0.0:4242", Some("a:1"), &[]), one("a:1"));
        assert_eq!(check("127.0.0.1:4242", None, &["10.0.0.7", "10.0.0.8"]), Ok(None));
        assert_eq!(check("0.0.0.0:4242", None, &["10.0.0.7"]), one("10.0.0.7:4242"));
        assert_eq!(check("[::]:4242", None, &["10.0.0.7", "fd00::7"]), one("10.0.0.7:4242"));
        assert_eq!(check("0.0.0.0:4242", None, &["fd00::7"]), one("[fd00::7]:4242"));
        let several = check("0.0.0.0:4242", None, &["10.0.0.7", "192.168.1.5"]).unwrap_err();
        assert!(several.message.contains("10.0.0.7, 192.168.1.5"), "{}", several.message);
        assert_eq!(several.exit as u8, 2);
        assert!(check("0.0.0.0:4242", None, &[]).is_err());
    }

    #[test]
    fn an_address_needs_host_and_port() {
        for good in ["10.0.0.7:4242", "m1.example:1", "[fd00::7]:4242", "0.0.0.0:0"] {
            assert!(super::check("--listen", good).is_ok(), "{good}");
        }
        for bad in ["10.0.0.7", ":4242", "fd00::7", "host:port", "host:70000", ""] {
            assert_eq!(super::check("--listen", bad).unwrap_err().exit as u8, 2, "{bad}");
        }
    }
}
