//! Which objects a list or a watch means.

use crate::types::api::Filter;
use crate::types::error::{Code, Status};
use crate::types::{Kind, Object, Selector};

/// Values of all fields of one filter. Each object that is looked at is compared with all of them.
const MAX_VALUES: usize = 1000;

/// Whether `filter` is one that can be served.
pub(super) fn check_size(filter: &Filter) -> Result<(), Status> {
    let values = values(filter);
    if values > MAX_VALUES {
        let message = format!("a filter may have {MAX_VALUES} values, and this one has {values}");
        return Err(Status::new(Code::InvalidArgument, message).with_hint("ask with a part of them at a time"));
    }
    Ok(())
}

/// Values of all fields.
pub(super) fn values(filter: &Filter) -> usize {
    let Filter { names, name_prefixes, id_prefixes, labels, kinds } = filter;
    names.len() + name_prefixes.len() + id_prefixes.len() + labels.len() + kinds.len()
}

/// Whether `filter` makes sense for objects of `kind`.
pub(super) fn check(kind: Kind, filter: &Filter) -> Result<(), Status> {
    check_size(filter)?;
    if !filter.kinds.is_empty() && kind != Kind::Resource {
        return Err(Status::new(Code::InvalidArgument, format!("a {kind} has no kind to filter by"))
            .with_hint("`--filter kind=K` is for `skep resource ls`"));
    }
    Ok(())
}

/// Selectors whose union contains everything that `filter` lets through, for the indexes to answer.
pub(super) fn selectors(filter: &Filter) -> Vec<Selector> {
    let names = filter.names.iter().cloned().map(Selector::Name);
    let prefixes = filter.name_prefixes.iter().cloned().map(Selector::NamePrefix);
    let ids = filter.id_prefixes.iter().cloned().map(Selector::IdPrefix);
    let mut selectors: Vec<Selector> = names.chain(prefixes).chain(ids).collect();
    if selectors.is_empty() {
        selectors.extend(filter.kinds.iter().cloned().map(Selector::Kind));
    }
    if selectors.is_empty() {
        selectors.push(Selector::All);
    }
    selectors
}

/// Whether `filter` lets `object` through.
pub(super) fn matches(filter: &Filter, object: &Object) -> bool {
    identity(filter, object) && labels(filter, object) && kinds(filter, object)
}

fn identity(filter: &Filter, object: &Object) -> bool {
    // `None`: the filter does not ask.
    let any = |values: &[String], has: fn(&Object, &str) -> bool| {
        (!values.is_empty()).then(|| values.iter().any(|value| has(object, value)))
    };
    let asked = [
        any(&filter.names, Object::has_name),
        any(&filter.name_prefixes, Object::has_name_prefix),
        any(&filter.id_prefixes, Object::has_id_prefix),
    ];
    let mut asked = asked.into_iter().flatten().peekable();
    match object.kind() {
        Kind::Secret | Kind::Config | Kind::Resource | Kind::Extension | Kind::Token => {
            asked.peek().is_none() || asked.any(|matches| matches)
        }
        _ => asked.all(|matches| matches),
    }
}

fn labels(filter: &Filter, object: &Object) -> bool {
    filter.labels.iter().all(|(key, wanted)| {
        let value = object.labels().get(key);
        match (value, wanted) {
            (Some(value), Some(wanted)) => value == wanted,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        }
    })
}

fn kinds(filter: &Filter, object: &Object) -> bool {
    filter.kinds.is_empty() || filter.kinds.iter().any(|kind| object.is_resource_of(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ObjectId;
    use crate::types::object::{Annotations, Config, ConfigSpec, Network, Resource};

    fn annotations(name: &str, label: &str) -> Annotations {
        let labels = [(label.to_owned(), "1".to_owned())].into();
        Annotations { name: name.to_owned(), labels, ..Annotations::default() }
    }

    fn filter(set: impl FnOnce(&mut Filter)) -> Filter {
        let mut filter = Filter::default();
        set(&mut filter);
        filter
    }

    #[test]
    fn fields_narrow_and_values_widen() {
        let web = Object::from(Config {
            id: ObjectId(1),
            spec: ConfigSpec { annotations: annotations("Web", "tier"), ..ConfigSpec::default() },
            ..Config::default()
        });
        let dish = Object::from(Resource {
            id: ObjectId(2),
            annotations: annotations("soup", "hot"),
            kind: "dish".to_owned(),
            ..Resource::default()
        });
        let id = ObjectId(1).to_string();
        let text = str::to_owned;
        for (filter, expected) in [
            (filter(|_| ()), (true, true)),
            (filter(|f| f.names = vec![text("web")]), (true, false)),
            (filter(|f| f.names = vec![text("we")]), (false, false)),
            (filter(|f| f.name_prefixes = vec![text("WE"), text("s")]), (true, true)),
            (filter(|f| f.id_prefixes = vec![id.clone()]), (true, false)),
            // Alternatives for these kinds.
            (filter(|f| (f.names, f.id_prefixes) = (vec![text("soup")], vec![id.clone()])), (true, true)),
            (filter(|f| f.labels = [(text("tier"), None)].into()), (true, false)),
            (filter(|f| f.labels = [(text("tier"), Some(text("1")))].into()), (true, false)),
            (filter(|f| f.labels = [(text("tier"), Some(text("2")))].into()), (false, false)),
            (filter(|f| f.labels = [(text("tier"), None), (text("hot"), None)].into()), (false, false)),
            (filter(|f| f.kinds = vec![text("dish")]), (false, true)),
            (filter(|f| (f.names, f.kinds) = (vec![text("soup")], vec![text("car")])), (false, false)),
        ] {
            assert_eq!((matches(&filter, &web), matches(&filter, &dish)), expected, "{filter:?}");
            for object in [&web, &dish] {
                let found = selectors(&filter).iter().any(|selector| selector.matches(object));
                assert!(found || !matches(&filter, object), "the indexes would miss it: {filter:?}");
            }
        }
    }

    #[test]
    fn names_and_ids_narrow_each_other_for_other_kinds() {
        let network = Object::Network(Box::new(Network { id: ObjectId(1), ..Network::default() }));
        let both = filter(|f| (f.names, f.id_prefixes) = (vec!["x".to_owned()], vec![ObjectId(1).to_string()]));
        assert!(!matches(&both, &network));
        assert!(matches(&filter(|f| f.id_prefixes = vec![ObjectId(1).to_string()]), &network));
    }

    #[test]
    fn a_filter_has_so_many_values_at_most() {
        let names = |count: usize| filter(|f| f.names = (0..count).map(|n| n.to_string()).collect());
        assert!(check(Kind::Config, &names(MAX_VALUES)).is_ok());
        let refused = check(Kind::Config, &names(MAX_VALUES + 1));
        assert!(matches!(&refused, Err(status) if status.code == Code::InvalidArgument && !status.hint.is_empty()));
    }

    #[test]
    fn only_resources_have_kinds() {
        let by_kind = filter(|f| f.kinds = vec!["dish".to_owned()]);
        assert!(check(Kind::Resource, &by_kind).is_ok());
        assert!(check(Kind::Config, &by_kind).is_err());
        assert!(check(Kind::Config, &Filter::default()).is_ok());
    }
}
