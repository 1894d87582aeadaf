//! Going through many objects, a few of which are fetched into the processor's cache before the first of them is used.
//!
//! Objects lie in memory in the order in which they were made, and are gone through in the order of their random ids: each
//! is two waits for memory and more, one after the other. Asked for side by side they take hardly longer than one.

use std::hint::black_box;
use std::sync::Arc;

use super::Stored;
use crate::types::Object;

/// As many as a processor core fetches at a time, two or three times over.
const AHEAD: usize = 32;
/// Bytes that come at once.
const LINE: usize = 64;
/// Of a long object the rest comes by itself while its beginning is read.
const LINES: usize = 8;

/// The same objects in the same order.
pub(super) fn ahead<'a>(objects: impl Iterator<Item = &'a Arc<Stored>>) -> impl Iterator<Item = &'a Arc<Stored>> {
    let mut objects = objects.fuse();
    let mut fetched: Vec<&Arc<Stored>> = Vec::with_capacity(AHEAD);
    let mut next = 0;
    std::iter::from_fn(move || {
        if next == fetched.len() {
            fetched.clear();
            fetched.extend(objects.by_ref().take(AHEAD));
            fetch(&fetched);
            next = 0;
        }
        let object = fetched.get(next).copied();
        next += 1;
        object
    })
}

/// In two rounds, because where the bytes of a resource lie stands in the object.
fn fetch(objects: &[&Arc<Stored>]) {
    for stored in objects {
        black_box(stored.bytes);
    }
    for stored in objects {
        if let Object::Resource(resource) = &stored.object {
            for line in resource.payload().chunks(LINE).take(LINES) {
                black_box(line[0]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ObjectId;
    use crate::types::object::{Annotations, Config, Meta, Resource};

    #[test]
    fn the_same_objects_come_in_the_same_order_however_many_there_are() {
        let object = |number: usize| {
            let (id, meta, annotations) = (ObjectId(number as u128), Meta::default(), Annotations::default());
            // Resources without bytes, with a few, and with more than are fetched; and something else.
            let payload = vec![1; (number % 3) * 700];
            let object = match number % 5 {
                0 => Config { id, ..Config::default() }.into(),
                _ => Resource { id, meta, annotations, kind: "k".to_owned(), payload }.into(),
            };
            Arc::new(Stored::new(object))
        };
        for count in [0, 1, AHEAD - 1, AHEAD, AHEAD + 1, 3 * AHEAD + 7] {
            let objects: Vec<_> = (0..count).map(object).collect();
            let mut came = ahead(objects.iter());
            for expected in &objects {
                assert!(came.next().is_some_and(|stored| Arc::ptr_eq(stored, expected)));
            }
            assert!(came.next().is_none() && came.next().is_none());
        }
    }
}
