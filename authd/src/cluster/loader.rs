//! Reads the directory again and again, and keeps the last good version of a file that breaks.
//!
//! A broken file that was good before changes nothing, except that policies which are new and can't be
//! applied are refused. A file that has never been good counts for what can be read of it, and what can't
//! be read may have been a policy, so it denies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use policy::Identity;

use super::files::{self, Links, Listing};
use super::manifest::{self, Body, Manifest, Object, ObjectKey, Refused};
use super::problem::Problem;
use super::snapshot::{self, Duplicate, Memory, Missing};
use super::{Cluster, Error, Site, policies};

/// The directory as it was when it was last read.
pub(super) struct Loader {
    directory: PathBuf,
    site: Site,
    files: BTreeMap<String, File>,
    memory: Memory,
    missing: Missing,
}

struct File {
    read: Result<String, String>,
    manifest: Manifest,
    good: Option<Manifest>,
}

/// What is in force of all files together.
#[derive(Default)]
pub(super) struct Effective {
    pub(super) objects: Vec<Object>,
    pub(super) refused: Vec<Refused>,
    pub(super) problems: Vec<Problem>,
}

impl Loader {
    pub(super) fn new(directory: &Path, site: &Site) -> Self {
        Self {
            directory: directory.to_owned(),
            site: site.clone(),
            files: BTreeMap::new(),
            memory: Memory::default(),
            missing: Missing::Reported,
        }
    }

    /// The snapshot of these files, in which what nobody declared or numbered is assumed.
    pub(super) fn assume(listing: Listing, site: &Site) -> Cluster {
        let mut loader = Self { missing: Missing::Assumed, ..Self::new(Path::new(""), site) };
        loader.take(listing)
    }

    /// Reads the directory and builds the snapshot.
    pub(super) fn load(&mut self) -> Result<Cluster, Error> {
        let listing = files::read(&self.directory, Links::Refused)?;
        Ok(self.take(listing))
    }

    /// The same, but leaves everything as it is if a writer may still be at a file.
    pub(super) fn load_settled(&mut self) -> Result<Option<Cluster>, Error> {
        let listing = files::read(&self.directory, Links::Refused)?;
        Ok((!listing.unsettled).then(|| self.take(listing)))
    }

    fn take(&mut self, listing: Listing) -> Cluster {
        self.update(listing.files);
        let mut effective = self.effective();
        effective.problems.extend(listing.problems);
        self.build(effective)
    }

    fn update(&mut self, read: BTreeMap<String, Result<String, String>>) {
        self.files.retain(|name, _| read.contains_key(name));
        for (name, read) in read {
            if self.files.get(&name).is_some_and(|file| file.read == read) {
                continue;
            }
            let manifest = match &read {
                Ok(text) => manifest::read(&name, text),
                Err(message) => Manifest::unreadable(&name, message),
            };
            let before = self.files.remove(&name).and_then(|file| file.good);
            let good = if manifest.is_good() { Some(manifest.clone()) } else { before };
            self.files.insert(name, File { read, manifest, good });
        }
    }

    fn effective(&self) -> Effective {
        let mut effective = Effective::default();
        for (name, File { manifest, good, .. }) in &self.files {
            match good {
                Some(good) => effective.objects.extend(good.objects.iter().cloned()),
                None => effective.objects.extend(manifest.objects.iter().cloned()),
            }
            let stays =
                good.as_ref().map(|good| (format!("; the last good version of {name} stays in force"), good));
            for problem in &manifest.problems {
                let mut problem = problem.clone();
                if let Some((suffix, _)) = &stays {
                    problem.message.push_str(suffix);
                }
                effective.problems.push(problem);
            }
            for refused in &manifest.refused {
                effective
                    .refuse(refused.clone(), stays.as_ref().map(|(suffix, good)| (suffix.as_str(), *good)));
            }
        }
        effective
    }

    fn build(&mut self, effective: Effective) -> Cluster {
        let Effective { mut objects, mut refused, mut problems } = effective;
        match self.missing {
            Missing::Reported => objects.retain(|object| !matches!(object.body, Body::StandIn(_))),
            Missing::Assumed => problems.extend(stand_in(&mut objects)),
        }
        let (objects, duplicates) = snapshot::unique(objects, &mut self.memory);
        for Duplicate { object, problem, is_settled } in duplicates {
            match Refused::duplicate(&object, problem.clone()) {
                Some(policy) if !is_settled => refused.push(policy),
                Some(_) | None => problems.push(problem),
            }
        }
        let mut cluster = snapshot::build(&objects, &mut self.memory, self.missing, &self.site);
        if let Some(naming) = &self.site.sharing {
            let spiffe_id = |identity: &Identity| naming.identity(identity).map(|id| id.to_string());
            cluster.surroundings.share_spiffe_ids(&cluster.identities, spiffe_id);
        }
        let (policies, refusals) = policies::collect(&objects, refused, &cluster, self.missing);
        cluster.policies = policies;
        cluster.problems.extend(problems);
        cluster.problems.extend(refusals);
        cluster.problems.sort();
        cluster.problems.dedup();
        cluster
    }

    /// The objects in force, for those who need more than the snapshot.
    pub(super) fn objects(&mut self) -> Vec<Object> {
        let objects = self.effective().objects;
        snapshot::unique(objects, &mut self.memory).0
    }

    /// What earlier snapshots settled.
    pub(super) const fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Has objects that stand for others be these, under their own names, unless the others are there: a
/// Deployment is the pods that it makes, as one of them. Gives what is wrong with them.
fn stand_in(objects: &mut [Object]) -> Vec<Problem> {
    let of = |body: &Body, key: &ObjectKey| {
        let is_identity = matches!(body, Body::Identity(_));
        let kind = (matches!(body, Body::Pod(_)), matches!(body, Body::Node { .. }), is_identity);
        (kind, key.namespace.clone(), key.name.clone())
    };
    let is_real = |object: &&Object| !matches!(object.body, Body::StandIn(_));
    let mut there: BTreeSet<_> =
        objects.iter().filter(is_real).map(|object| of(&object.body, &object.key)).collect();
    let mut problems = Vec::new();
    for object in objects {
        let Body::StandIn(stands_for) = &object.body else { continue };
        match stands_for {
            Ok(body) if there.insert(of(body, &object.key)) => object.body = Body::clone(body),
            Ok(_) => {}
            Err((field, message)) => problems.push(object.error(field, message)),
        }
    }
    problems
}

impl Effective {
    fn refuse(&mut self, mut refused: Refused, stays: Option<(&str, &Manifest)>) {
        if let Some((suffix, good)) = stays {
            let before: BTreeSet<&ObjectKey> = good.objects.iter().map(|object| &object.key).collect();
            let is_new_policy = refused.key.as_ref().is_some_and(|key| !before.contains(key));
            if !is_new_policy {
                refused.problem.message.push_str(suffix);
                self.problems.push(refused.problem);
                return;
            }
        }
        self.refused.push(refused);
    }
}
