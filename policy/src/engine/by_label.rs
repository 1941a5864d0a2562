//! Indices by label: who has one, and who asks for one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::label_set::LabelSet;
use crate::selector::{Operator, Selector};

/// A label's key, whatever its source, and its value.
pub(super) type Place = (Box<str>, Box<str>);

/// Things by label.
#[derive(Clone, Debug)]
pub(super) struct ByLabel<T> {
    items: HashMap<Box<str>, HashMap<Box<str>, BTreeSet<T>>>,
}

impl<T> Default for ByLabel<T> {
    fn default() -> Self {
        Self { items: HashMap::new() }
    }
}

impl<T: Ord + Clone> ByLabel<T> {
    pub(super) fn insert(&mut self, (key, value): &Place, item: T) {
        self.items.entry(key.clone()).or_default().entry(value.clone()).or_default().insert(item);
    }

    pub(super) fn remove(&mut self, (key, value): &Place, item: &T) {
        let Some(values) = self.items.get_mut(key) else { return };
        if let Some(items) = values.get_mut(value) {
            items.remove(item);
            if items.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.items.remove(key);
        }
    }

    pub(super) fn get(&self, key: &str, value: &str) -> impl Iterator<Item = &T> {
        self.items.get(key).and_then(|values| values.get(value)).into_iter().flatten()
    }

    /// Adds or removes a thing at all its labels.
    pub(super) fn set_labels(&mut self, labels: &LabelSet, item: &T, is_there: bool) {
        for label in labels {
            let place = (label.key().into(), label.value().into());
            if is_there {
                self.insert(&place, item.clone());
            } else {
                self.remove(&place, item);
            }
        }
    }

    /// The labels of which every set that the selector selects has at least one: those with the fewest
    /// things. None if the selector asks for no label by its value.
    pub(super) fn narrowest(&self, selector: &Selector) -> Option<Vec<Place>> {
        let places = selector.requirements.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => {
                let key = requirement.key.key();
                Some(values.iter().map(|value| (key.into(), value.as_str().into())).collect::<Vec<Place>>())
            }
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        let size =
            |places: &Vec<Place>| places.iter().map(|(key, value)| self.len(key, value)).sum::<usize>();
        places.min_by_key(size)
    }

    fn len(&self, key: &str, value: &str) -> usize {
        self.items.get(key).and_then(|values| values.get(value)).map_or(0, BTreeSet::len)
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
            self.by_label.insert(place, item.clone());
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
        let by_label = labels.iter().flat_map(|label| self.by_label.get(label.key(), label.value()));
        by_label.chain(&self.rest).collect()
    }
}
