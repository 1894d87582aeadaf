//! Resources, in the form that is made and the form that is kept.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::slice::SliceIndex;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Annotations, Meta, ObjectId, readable};

/// An object of a registered kind, as it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// Name, labels and indices.
    pub annotations: Annotations,
    /// The extension's name.
    pub kind: String,
    /// The user's bytes; at most [`MAX_CONFIG_BYTES`](crate::types::limits::MAX_CONFIG_BYTES).
    pub payload: Vec<u8>,
}

/// A [`Resource`] as it is kept: the same in 64 bytes and one allocation, two if it has labels or indices. Of nothing else
/// does a swarm have so many.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PackedResource {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    content: Content,
}

/// What else a resource has.
#[derive(Clone, PartialEq, Eq)]
enum Content {
    Plain(Text),
    /// With labels or indices.
    Labelled(Box<Labelled>),
}

#[derive(Clone, PartialEq, Eq)]
struct Labelled {
    text: Text,
    labels: BTreeMap<String, String>,
    indices: BTreeMap<String, String>,
}

/// Name, kind and payload, one after the other.
#[derive(Clone, Default, PartialEq, Eq)]
struct Text {
    bytes: Box<[u8]>,
    kind_length: u32,
    /// In three bytes, little-endian.
    name_length: [u8; 3],
    tag: Tag,
}

/// The values that this byte never has tell the variants of [`Content`] and of [`super::Object`] apart, which so take no
/// place of their own.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    #[default]
    Text,
}

impl Default for Content {
    fn default() -> Self {
        Self::Plain(Text::default())
    }
}

/// The labels and indices of what has none.
pub(super) static NO_ATTRIBUTES: BTreeMap<String, String> = BTreeMap::new();

impl PackedResource {
    /// One of this name, kind and payload, copied once, and of these labels and indices.
    pub fn new(
        id: ObjectId,
        meta: Meta,
        (name, kind, payload): (&str, &str, &[u8]),
        labels: BTreeMap<String, String>,
        indices: BTreeMap<String, String>,
    ) -> Self {
        const LENGTH: &str = "it came in a frame of at most 4 MiB";
        let Ok([name_length @ .., 0]) = u32::try_from(name.len()).map(u32::to_le_bytes) else { panic!("{LENGTH}") };
        let text = Text {
            bytes: [name.as_bytes(), kind.as_bytes(), payload].concat().into(),
            kind_length: u32::try_from(kind.len()).expect(LENGTH),
            name_length,
            tag: Tag::Text,
        };
        let content = if labels.is_empty() && indices.is_empty() {
            Content::Plain(text)
        } else {
            Content::Labelled(Box::new(Labelled { text, labels, indices }))
        };
        Self { id, meta, content }
    }

    const fn text(&self) -> &Text {
        match &self.content {
            Content::Plain(text) => text,
            Content::Labelled(labelled) => &labelled.text,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        text(self.name_bytes())
    }

    /// Its name, to compare and to hash.
    pub fn name_bytes(&self) -> &[u8] {
        self.text().part(|name, _| ..name)
    }

    /// The extension's name.
    pub fn kind(&self) -> &str {
        text(self.kind_bytes())
    }

    /// The extension's name, to compare and to hash.
    pub fn kind_bytes(&self) -> &[u8] {
        self.text().part(|name, kind| name..name + kind)
    }

    /// The user's bytes.
    pub fn payload(&self) -> &[u8] {
        self.text().part(|name, kind| name + kind..)
    }

    /// The labels that people gave it.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        match &self.content {
            Content::Plain(_) => &NO_ATTRIBUTES,
            Content::Labelled(labelled) => &labelled.labels,
        }
    }

    /// The custom indices: name to value.
    pub fn indices(&self) -> &BTreeMap<String, String> {
        match &self.content {
            Content::Plain(_) => &NO_ATTRIBUTES,
            Content::Labelled(labelled) => &labelled.indices,
        }
    }

    /// The same with what is given in the place of what it has.
    #[must_use]
    pub fn changed(
        &self,
        payload: Option<&[u8]>,
        labels: Option<&BTreeMap<String, String>>,
        indices: Option<&BTreeMap<String, String>>,
    ) -> Self {
        let labels = labels.unwrap_or_else(|| self.labels()).clone();
        let indices = indices.unwrap_or_else(|| self.indices()).clone();
        let payload = payload.unwrap_or_else(|| self.payload());
        Self::new(self.id, self.meta, (self.name(), self.kind(), payload), labels, indices)
    }

    /// The form that is made of plain parts.
    pub fn unpacked(&self) -> Resource {
        let (labels, indices) = (self.labels().clone(), self.indices().clone());
        Resource {
            id: self.id,
            meta: self.meta,
            annotations: Annotations { name: self.name().to_owned(), labels, indices },
            kind: self.kind().to_owned(),
            payload: self.payload().to_vec(),
        }
    }
}

impl Text {
    /// What lies where `range` says, from the lengths of name and kind. A length that rotted in memory gives nothing, for the
    /// scrubber to find, and no panic.
    fn part<R: SliceIndex<[u8], Output = [u8]>>(&self, range: impl Fn(usize, usize) -> R) -> &[u8] {
        let [first, second, third] = self.name_length;
        let name = u32::from_le_bytes([first, second, third, 0]);
        self.bytes.get(range(name as usize, self.kind_length as usize)).unwrap_or_default()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it was packed as text, of this length")
}

impl From<Resource> for PackedResource {
    fn from(resource: Resource) -> Self {
        let Resource { id, meta, annotations: Annotations { name, labels, indices }, kind, payload } = resource;
        Self::new(id, meta, (&name, &kind, &payload), labels, indices)
    }
}

impl fmt::Debug for PackedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.unpacked(), f)
    }
}

/// The fields of a [`Resource`] as they are written.
#[derive(Serialize)]
#[serde(rename = "Resource")]
struct Written<'a> {
    id: ObjectId,
    meta: Meta,
    annotations: WrittenAnnotations<'a>,
    kind: WrittenText<'a>,
    #[serde(with = "readable")]
    payload: &'a [u8],
}

#[derive(Serialize)]
#[serde(rename = "Annotations")]
struct WrittenAnnotations<'a> {
    name: WrittenText<'a>,
    labels: &'a BTreeMap<String, String>,
    indices: &'a BTreeMap<String, String>,
}

/// Text. The binary form, in which every object is hashed, has the same for its bytes, without a look at them.
struct WrittenText<'a>(&'a [u8]);

impl Serialize for WrittenText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(text(self.0))
        } else {
            serializer.serialize_bytes(self.0)
        }
    }
}

impl Serialize for PackedResource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, kind) = (WrittenText(self.name_bytes()), WrittenText(self.kind_bytes()));
        let annotations = WrittenAnnotations { name, labels: self.labels(), indices: self.indices() };
        Written { id: self.id, meta: self.meta, annotations, kind, payload: self.payload() }.serialize(serializer)
    }
}

/// The same as they are read, borrowed where they can be.
#[derive(Deserialize)]
#[serde(rename = "Resource")]
struct Read<'a> {
    id: ObjectId,
    meta: Meta,
    #[serde(borrow)]
    annotations: ReadAnnotations<'a>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "readable::borrow")]
    payload: Cow<'a, [u8]>,
}

#[derive(Deserialize)]
#[serde(rename = "Annotations")]
struct ReadAnnotations<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    labels: BTreeMap<String, String>,
    indices: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for PackedResource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { id, meta, annotations, kind, payload } = Read::deserialize(deserializer)?;
        let ReadAnnotations { name, labels, indices } = annotations;
        Ok(Self::new(id, meta, (&name, &kind, &payload), labels, indices))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The form that is written, as a plain struct.
    #[derive(Serialize)]
    struct Plain<'a> {
        id: ObjectId,
        meta: Meta,
        annotations: &'a Annotations,
        kind: &'a str,
        #[serde(with = "readable")]
        payload: &'a [u8],
    }

    #[test]
    fn a_packed_resource_is_the_same_resource_and_written_alike() {
        let one = |key: &str| BTreeMap::from([(key.to_owned(), "value".to_owned())]);
        for (name, kind, payload) in [("soup", "dish", &b"hot\xff"[..]), ("grün", "größe", b""), ("", "", b"x")] {
            for (labels, indices) in [(one("l"), BTreeMap::new()), (one("l"), one("i")), Default::default()] {
                let annotations = Annotations { name: name.to_owned(), labels, indices };
                let (id, meta) = (ObjectId(7), Meta { version: crate::types::Revision(3), ..Meta::default() });
                let form = Plain { id, meta, annotations: &annotations, kind, payload };
                let (encoded, json) = (bincode::serialize(&form).unwrap(), serde_json::to_string(&form).unwrap());
                let plain = Resource {
                    id,
                    meta,
                    annotations: annotations.clone(),
                    kind: kind.to_owned(),
                    payload: payload.to_vec(),
                };
                let packed = PackedResource::from(plain.clone());
                assert_eq!(packed.unpacked(), plain);
                assert_eq!((packed.name(), packed.kind(), packed.payload()), (name, kind, payload));
                let changed = packed.changed(Some(b"new"), None, Some(&one("k"))).unpacked();
                let indices = one("k");
                let annotations = Annotations { indices, ..annotations.clone() };
                assert_eq!(changed, Resource { payload: b"new".to_vec(), annotations, ..plain });
                assert_eq!(bincode::serialize(&packed).unwrap(), encoded);
                assert_eq!(serde_json::to_string(&packed).unwrap(), json);
                assert_eq!(bincode::deserialize::<PackedResource>(&encoded).unwrap(), packed);
                let read: PackedResource = bincode::deserialize_from(&*encoded).unwrap();
                assert_eq!(read, packed, "borrowing is a choice");
            }
        }
    }

    #[test]
    fn a_length_that_rots_changes_what_is_written() {
        let mut resource = Resource { kind: "dish".to_owned(), payload: vec![7; 9], ..Resource::default() };
        resource.annotations.name = "soup".to_owned();
        let packed = PackedResource::from(resource);
        let Content::Plain(text) = &packed.content else { panic!("it has no labels") };
        for bit in 0..32 {
            let mut rotten = [text.clone(), text.clone()];
            if let Some(byte) = rotten[0].name_length.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            rotten[1].kind_length ^= 1 << bit;
            for text in rotten.into_iter().filter(|rotten| rotten != text) {
                let rotten = PackedResource { content: Content::Plain(text), ..packed.clone() };
                assert_ne!(bincode::serialize(&rotten).unwrap(), bincode::serialize(&packed).unwrap(), "bit {bit}");
            }
        }
    }

    #[test]
    fn an_object_in_memory_is_small() {
        assert_eq!((size_of::<PackedResource>(), size_of::<super::super::Object>()), (64, 64));
    }
}
