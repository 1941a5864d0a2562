//! Manifests without a daemon: what `authctl policy` looks at.
//!
//! What the API server or `authctl identities allocate` would add (namespaces, identities) is assumed, so
//! that policies can be tried before anything is deployed.

use std::path::PathBuf;

use super::files::{self, Links, Listing};
use super::loader::Loader;
use super::{Cluster, Error, Site};

/// The snapshot of these files and directories (`-` for standard input) together. Problems name files by the
/// path given.
///
/// # Errors
/// [`Error`] if one of them can't be read; whatever is wrong inside is among the snapshot's problems.
pub fn load_offline(paths: &[PathBuf], site: &Site) -> Result<Cluster, Error> {
    let mut all = Listing::default();
    for path in paths {
        if path.is_dir() {
            let listing = files::read(path, Links::Followed)?;
            let named = |name: String| path.join(name).display().to_string();
            all.files.extend(listing.files.into_iter().map(|(name, read)| (named(name), read)));
            all.problems.extend(listing.problems.into_iter().map(|mut problem| {
                problem.file = problem.file.map(named);
                problem
            }));
        } else if path.as_os_str() == "-" {
            let read = files::read_stdin();
            let text = read.map_err(|message| Error::File { path: "standard input".into(), message })?;
            all.files.insert("standard input".to_owned(), Ok(text));
        } else {
            let read = files::read_named(path);
            let text = read.map_err(|message| Error::File { path: path.clone(), message })?;
            all.files.insert(path.display().to_string(), Ok(text));
        }
    }
    Ok(Loader::assume(all, site))
}

/// The snapshot of one text of manifests.
#[must_use]
pub fn from_text(text: &str, site: &Site) -> Cluster {
    let files = [("text".to_owned(), Ok(text.to_owned()))].into();
    Loader::assume(Listing { files, ..Listing::default() }, site)
}
