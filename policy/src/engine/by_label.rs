//! Indices by label: who has one, and who asks for one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::label_set::LabelSet;
use crate::selector::{Operator, Selector};

/// A label's key, whatever its source, and its value; none for any value.
pub(super) type Place = (Box<str>, Option<Box<str>>);

/// Things by label.
#[derive(Clone, Debug)]
pub(super) struct ByLabel<T> {
    by_value: HashMap<Box<str>, HashMap<Box<str>, BTreeSet<T>>>,
    by_key: HashMap<Box<str>, BTreeSet<T>>,
}

impl<T> Default for ByLabel<T> {
    fn default() -> Self {
        Self { by_value: HashMap::new(), by_key: HashMap::new() }
    }
}

impl<T: Ord + Clone> ByLabel<T> {
    pub(super) fn insert(&mut self, (key, value): Place, item: T) {
        match value {
            Some(value) => self.by_value.entry(key).or_default().entry(value).or_default().insert(item),
            None => self.by_key.entry(key).or_default().insert(item),
        };
    }

    pub(super) fn remove(&mut self, (key, value): &Place, item: &T) {
        let Some(value) = value else {
            remove(&mut self.by_key, key, item);
            return;
        };
        let Some(values) = self.by_value.get_mut(key) else { return };
        remove(values, value, item);
        if values.is_empty() {
            self.by_value.remove(key);
        }
    }

    /// The things at a key and this value, or at any value of it.
    pub(super) fn get(&self, key: &str, value: Option<&str>) -> impl Iterator<Item = &T> {
        self.at(key, value).into_iter().flatten()
    }

    /// Adds or removes a thing at all its labels.
    pub(super) fn set_labels(&mut self, labels: &LabelSet, item: &T, is_there: bool) {
        for label in labels {
            for value in [Some(label.value().into()), None] {
                let place = (label.key().into(), value);
                if is_there {
                    self.insert(place, item.clone());
                } else {
                    self.remove(&place, item);
                }
            }
        }
    }

    /// The labels of which every set that the selector selects has at least one: those with the fewest
    /// things. None if the selector asks for no label to be there.
    pub(super) fn narrowest(&self, selector: &Selector) -> Option<Vec<Place>> {
        let places = selector.requirements.iter().filter_map(|requirement| {
            let key = || requirement.key.key().into();
            match &requirement.operator {
                Operator::In(values) => {
                    let place = |value: &String| (key(), Some(value.as_str().into()));
                    Some(values.iter().map(place).collect::<Vec<Place>>())
                }
                Operator::Exists => Some(vec![(key(), None)]),
                Operator::NotIn(_) | Operator::DoesNotExist => None,
            }
        });
        let len = |(key, value): &Place| self.at(key, value.as_deref()).map_or(0, BTreeSet::len);
        places.min_by_key(|places| places.iter().map(len).sum::<usize>())
    }

    fn at(&self, key: &str, value: Option<&str>) -> Option<&BTreeSet<T>> {
        match value {
            Some(value) => self.by_value.get(key).and_then(|values| values.get(value)),
            None => self.by_key.get(key),
        }
    }
}

fn remove<T: Ord>(items: &mut HashMap<Box<str>, BTreeSet<T>>, at: &str, item: &T) {
    if let Some(there) = items.get_mut(at) {
        there.remove(item);
        if there.is_empty() {
            items.remove(at);
        }
    }
}

/// Things that ask for labels, to be found by the labels that there are.
#[derive(Clone, Debug)]
pub(super) struct Asking<T> {
    by_label: ByLabel<T>,
    /// Those that may ask for anything.
    rest: BTreeSet<T>,
    places: BTreeMap<T, Vec<Place>>,
}

impl<T: Ord> Default for Asking<T> {
    fn default() -> Self {
        Self { by_label: ByLabel::default(), rest: BTreeSet::new(), places: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Asking<T> {
    /// Where a selector is best put; none for among the rest.
    pub(super) fn place(&self, selector: &Selector) -> Option<Vec<Place>> {
        self.by_label.narrowest(selector)
    }

    /// Adds a thing that asks for one of these labels, or none if it may ask for anything.
    pub(super) fn insert(&mut self, item: T, places: Option<Vec<Place>>) {
        let Some(places) = places else {
            self.rest.insert(item);
            return;
        };
        for place in &places {
            self.by_label.insert(place.clone(), item.clone());
        }
        self.places.insert(item, places);
    }

    pub(super) fn remove(&mut self, item: &T) {
        self.rest.remove(item);
        for place in self.places.remove(item).unwrap_or_default() {
            self.by_label.remove(&place, item);
        }
    }

    /// All that may ask for something that these labels have, in order.
    pub(super) fn candidates(&self, labels: &LabelSet) -> BTreeSet<&T> {
        let by_label = labels.iter().flat_map(|label| {
            let by_value = self.by_label.get(label.key(), Some(label.value()));
            by_value.chain(self.by_label.get(label.key(), None))
        });
        by_label.chain(&self.rest).collect()
    }
}
