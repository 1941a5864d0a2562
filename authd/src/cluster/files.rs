//! Reads the manifest files of a directory: one level deep, regular files only, bounded in size.
//!
//! What can't be read is reported beside what can; only an unreadable directory is an error.

use std::collections::BTreeMap;
use std::fs::{DirEntry, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

use super::Error;
use super::problem::Problem;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// A file written to more recently than this may not be complete yet.
const SETTLE: Duration = Duration::from_millis(50);
const NOT_REGULAR: &str = "not a regular file";
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The directory's files as they were read.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The text of each manifest file by name, or why it can't be read.
    pub(super) files: BTreeMap<String, Result<String, String>>,
    /// Entries that look like manifests but aren't read.
    pub(super) problems: Vec<Problem>,
    /// Whether a file was written to so recently that a writer may still be at it.
    pub(super) unsettled: bool,
}

/// What becomes of symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// They are refused, which keeps the daemon from being pointed at other files.
    Refused,
    /// They lead where they lead: a person has named the directory.
    Followed,
}

/// Reads every `*.yaml`, `*.yml` and `*.json` in `directory`; hidden files belong to editors and tools.
///
/// # Errors
/// If the directory itself can't be listed.
pub(super) fn read(directory: &Path, links: Links) -> Result<Listing, Error> {
    let unreadable = |source| Error::Directory { directory: directory.to_owned(), source };
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        read_entry(&entry.map_err(unreadable)?, links, &mut listing);
    }
    listing.problems.sort();
    Ok(listing)
}

/// Reads one file that was named by a person, whatever it is called and wherever it leads.
pub(super) fn read_named(path: &Path) -> Result<String, String> {
    let bytes = read_bounded(File::open(path).map_err(|error| error.to_string())?)?;
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn read_followed(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.is_file() { read_named(path) } else { Err(NOT_REGULAR.to_owned()) }
}

/// Reads what is piped in.
pub(super) fn read_stdin() -> Result<String, String> {
    let bytes = read_bounded(io::stdin().lock())?;
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

/// Which directory this is, to notice when another has taken its place.
pub(super) fn directory_id(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(directory)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok((metadata.dev(), metadata.ino()))
}

fn read_entry(entry: &DirEntry, links: Links, listing: &mut Listing) {
    let file_name = entry.file_name();
    let name = file_name.to_string_lossy().into_owned();
    if name.starts_with('.') {
        return;
    }
    let is_manifest =
        Path::new(&name).extension().is_some_and(|end| EXTENSIONS.iter().any(|known| end == *known));
    if !is_manifest {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let message = "subdirectories are not read; put the manifests into the directory itself";
            listing.problems.push(Problem::notice(message).in_file(&name));
        }
        return;
    }
    let read = match file_name.to_str() {
        Some(_) if links == Links::Followed => read_followed(&entry.path()),
        Some(_) => read_file(&entry.path(), &mut listing.unsettled),
        None => Err("file name is not UTF-8".to_owned()),
    };
    listing.files.insert(name, read);
}

fn read_file(path: &Path, unsettled: &mut bool) -> Result<String, String> {
    // Not blocking keeps the daemon from being pointed at a pipe.
    let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    if is_link {
        return Err("symbolic links are not followed; copy the file here".to_owned());
    }
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err(NOT_REGULAR.to_owned());
    }
    *unsettled |= metadata.modified().is_ok_and(is_recent);
    let text = read_bounded(file)?;
    String::from_utf8(text).map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn read_bounded(file: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(format!("larger than {} MiB; split it", MAX_FILE_BYTES / 1024 / 1024));
    }
    Ok(bytes)
}

fn is_recent(modified: SystemTime) -> bool {
    let age = SystemTime::now().duration_since(modified);
    // A time in the future says nothing about a writer.
    age.is_ok_and(|age| age < SETTLE)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn reads_manifests_only() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml~", "README"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let listing = read(directory.path(), Links::Refused).unwrap();
        assert_eq!(listing.files.keys().collect::<Vec<_>>(), ["a.yaml", "b.yml", "c.json"]);
        assert_eq!(listing.files["a.yaml"], Ok("a.yaml".to_owned()));
        assert!(listing.unsettled && listing.problems.is_empty());
    }

    #[test]
    fn refuses_what_is_no_plain_readable_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        symlink("/etc/passwd", path("link.yaml")).unwrap();
        symlink("missing", path("dangling.yaml")).unwrap();
        std::fs::create_dir(path("dir.yaml")).unwrap();
        std::fs::write(path("binary.yaml"), b"a: \xff").unwrap();
        std::fs::write(path("huge.yaml"), vec![b'#'; 4 * 1024 * 1024 + 1]).unwrap();
        std::fs::write(path("full.yaml"), vec![b'#'; 4 * 1024 * 1024]).unwrap();
        nix::unistd::mkfifo(&path("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let files = read(directory.path(), Links::Refused).unwrap().files;
        let refused = |name: &str| files[name].clone().unwrap_err();
        assert_eq!(refused("link.yaml"), "symbolic links are not followed; copy the file here");
        assert_eq!(refused("dangling.yaml"), refused("link.yaml"));
        assert_eq!(refused("dir.yaml"), "not a regular file");
        assert_eq!(refused("pipe.yaml"), "not a regular file");
        assert_eq!(refused("binary.yaml"), "not UTF-8 at byte 3");
        assert_eq!(refused("huge.yaml"), "larger than 4 MiB; split it");
        assert!(files["full.yaml"].is_ok());
    }

    #[test]
    fn a_person_may_lead_to_files_by_links() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(elsewhere.path().join("a"), "a: 1").unwrap();
        symlink(elsewhere.path().join("a"), directory.path().join("a.yaml")).unwrap();
        let files = read(directory.path(), Links::Followed).unwrap().files;
        assert_eq!(files["a.yaml"], Ok("a: 1".to_owned()));
    }

    #[test]
    fn says_that_subdirectories_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("more")).unwrap();
        std::fs::create_dir(directory.path().join(".git")).unwrap();
        let problems = read(directory.path(), Links::Refused).unwrap().problems;
        assert_eq!(
            problems.iter().map(Problem::to_string).collect::<Vec<_>>(),
            ["more: subdirectories are not read; put the manifests into the directory itself"]
        );
    }

    #[test]
    fn an_absent_directory_names_the_flag() {
        let error = read(Path::new("/nonexistent/authd"), Links::Refused).unwrap_err();
        assert!(error.to_string().contains("--cluster-dir"), "{error}");
    }
}
