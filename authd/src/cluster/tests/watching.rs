//! The watch: what it notices, and what it doesn't make noise about.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch::Receiver;

use super::*;

struct Watched {
    directory: Directory,
    receiver: Receiver<Arc<Cluster>>,
    watch: Watch,
}

impl Watched {
    fn new() -> Self {
        let directory = Directory::galaxy();
        let (receiver, watch) = watch(directory.path(), &Site::default()).unwrap();
        Self { directory, receiver, watch }
    }

    /// Waits for a snapshot like this; far below the ten seconds of the next scan.
    async fn until(&mut self, like: impl FnMut(&Arc<Cluster>) -> bool) -> Arc<Cluster> {
        let found = tokio::time::timeout(Duration::from_secs(5), self.receiver.wait_for(like)).await;
        Arc::clone(&found.expect("no such snapshot in time").expect("the watch has ended"))
    }
}

fn has(name: &'static str) -> impl FnMut(&Arc<Cluster>) -> bool {
    move |cluster| cluster.pod("default", name).is_some()
}

#[tokio::test]
async fn notices_files_that_come_change_move_and_go() {
    let mut watched = Watched::new();
    assert_eq!(watched.receiver.borrow().pods.len(), 2);
    std::fs::write(watched.directory.file("new.yaml"), pod("bwing", 1, 30)).unwrap();
    watched.until(has("bwing")).await;
    std::fs::write(watched.directory.file("new.yaml"), pod("ywing", 1, 30)).unwrap();
    watched.until(has("ywing")).await;
    // As editors save: another file takes the place of the old one.
    std::fs::write(watched.directory.file(".new.yaml.swp"), pod("awing", 1, 30)).unwrap();
    std::fs::rename(watched.directory.file(".new.yaml.swp"), watched.directory.file("new.yaml")).unwrap();
    watched.until(has("awing")).await;
    std::fs::rename(watched.directory.file("new.yaml"), watched.directory.file("new.txt")).unwrap();
    watched.until(|cluster| cluster.pods.len() == 2).await;
    std::fs::remove_file(watched.directory.file("pods.yaml")).unwrap();
    watched.until(|cluster| cluster.pods.is_empty()).await;
}

#[tokio::test]
async fn says_nothing_when_nothing_changed() {
    let mut watched = Watched::new();
    watched.receiver.mark_unchanged();
    let text = std::fs::read_to_string(watched.directory.file("pods.yaml")).unwrap();
    std::fs::write(watched.directory.file("pods.yaml"), format!("# comment\n\n{text}")).unwrap();
    std::fs::write(watched.directory.file("notes.txt"), "x").unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(500), watched.receiver.changed()).await.is_err());
}

#[tokio::test]
async fn a_file_half_written_is_not_read() {
    let mut watched = Watched::new();
    watched.receiver.mark_unchanged();
    let text = documents(&[pod("xwing", 1, 11), pod("deathstar", 2, 10), pod("bwing", 1, 30)]);
    let mut file = std::fs::File::create(watched.directory.file("pods.yaml")).unwrap();
    let mut last = Instant::now();
    for chunk in text.as_bytes().chunks(text.len() / 8) {
        let before = Instant::now();
        io::Write::write_all(&mut file, chunk).unwrap();
        if last.elapsed() > Duration::from_millis(45) {
            // Past the capture of the test runner: `scripts/test` counts these lines.
            let _unread = writeln!(
                io::stderr(),
                "SKIPPED: a_file_half_written_is_not_read: this machine is too slow to write steadily"
            );
            return;
        }
        last = before;
        assert!(!watched.receiver.has_changed().unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(file);
    watched.receiver.changed().await.unwrap();
    assert_eq!(watched.receiver.borrow().pods.len(), 3);
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_state() {
    let mut watched = Watched::new();
    std::fs::write(watched.directory.file("pods.yaml"), "a: [").unwrap();
    let cluster = watched.until(|cluster| cluster.has_errors()).await;
    assert_eq!(cluster.pods.len(), 2);
}

#[tokio::test]
async fn a_removed_directory_keeps_the_last_state_until_it_is_back() {
    let mut watched = Watched::new();
    let path = watched.directory.path().to_owned();
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    let cluster = watched.until(|cluster| cluster.has_errors()).await;
    assert_eq!(cluster.pods.len(), 2);
    let text = texts(&cluster).remove(0);
    assert!(text.contains("No such file") && text.contains("--cluster-dir"), "{text}");
    assert!(text.ends_with("; the last state stays in force"), "{text}");

    std::fs::create_dir(&path).unwrap();
    for file in ["base.yaml", IDENTITIES_FILE] {
        std::fs::copy(away.join(file), path.join(file)).unwrap();
    }
    watched.until(|cluster| !cluster.has_errors() && cluster.pods.is_empty()).await;
    // The new directory is watched, not the old one.
    std::fs::write(watched.directory.file("new.yaml"), pod("bwing", 1, 30)).unwrap();
    watched.until(has("bwing")).await;
    std::fs::remove_dir_all(away).unwrap();
}

#[tokio::test]
async fn a_directory_made_anew_is_watched() {
    let mut watched = Watched::new();
    let path = watched.directory.path().to_owned();
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    watched.until(|cluster| cluster.nodes.is_empty()).await;
    std::fs::write(watched.directory.file("base.yaml"), node(1)).unwrap();
    watched.until(|cluster| cluster.nodes.len() == 1).await;
}

#[tokio::test]
async fn ends_when_dropped() {
    let Watched { receiver, watch, directory } = Watched::new();
    drop(watch);
    let started = Instant::now();
    while receiver.has_changed().is_ok() {
        assert!(started.elapsed() < Duration::from_secs(5), "the thread goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(directory);
}

#[test]
fn an_absent_directory_is_an_error_that_names_the_flag() {
    let error = watch(Path::new("/nonexistent/manifests"), &Site::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "cluster directory /nonexistent/manifests: No such file or directory (os error 2); name the directory of the manifests (for authd with --cluster-dir)"
    );
    assert!(
        watch(Path::new("/etc/passwd"), &Site::default()).unwrap_err().to_string().contains("--cluster-dir")
    );
}
