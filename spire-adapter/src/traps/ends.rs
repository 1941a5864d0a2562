//! What ends a stream from this side: its process, a newer SVID of our own, silence.

use std::process::Command;

use tokio::sync::{mpsc, watch};

use super::*;
use crate::broker::Process;
use crate::snapshot::Heard;
use crate::socket::Dial;
use crate::stream::Agent;

/// Long enough for what would come at once.
const MOMENT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn the_end_of_a_process_is_told_by_nobody_else() {
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
    assert!(process.is_alive());
    let agent = Agent::new("/nowhere".into());
    let (sink, mut heard) = mpsc::channel(1);
    let followed = async {
        tokio::join!(process.follow(&agent, sink, std::future::pending()), async {
            assert!(tokio::time::timeout(MOMENT, heard.recv()).await.is_err(), "it lives");
            child.kill().unwrap();
            child.wait().unwrap();
            let told = heard.recv().await;
            assert!(matches!(told, Some(Heard::Denied(ApiError::ProcessEnded { .. }))), "{told:?}");
            drop(heard);
        })
    };
    tokio::time::timeout(PATIENCE, followed).await.unwrap();
}

#[tokio::test]
async fn a_newer_svid_of_our_own_supersedes_a_connection() {
    let (_agent, ca) = rig();
    let own = || {
        let svid = ca.issue(&expected(), HOUR).unwrap().to_svid().unwrap();
        Snapshot { state: State::Usable(svid), ..Snapshot::default() }
    };
    let (sender, receiver) = watch::channel(own());
    let dial = Dial::Mutual(receiver);
    let first = dial.svid();
    for dial in [&dial, &Dial::Plain] {
        let superseded = tokio::time::timeout(MOMENT, dial.superseded(first.as_ref())).await;
        assert!(superseded.is_err(), "by nothing");
    }
    sender.send_replace(own());
    tokio::time::timeout(PATIENCE, dial.superseded(first.as_ref())).await.unwrap();
    // Nor does one count that is withdrawn.
    let second = dial.svid();
    sender.send_replace(Snapshot::default());
    tokio::time::timeout(PATIENCE, dial.superseded(second.as_ref())).await.unwrap();
}

#[tokio::test]
async fn a_stream_on_which_a_newer_svid_is_overdue_is_opened_anew() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), Duration::from_secs(8)).unwrap();
    agent.send(message(&[&svid]));
    let subscription = agent.subscribe(&expected());
    until(&subscription, |next| next.svid().is_some()).await;
    assert_eq!(agent.opened(), 1);
    let anew = async {
        while agent.opened() == 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, anew).await.unwrap();
    assert!(SystemTime::now() < svid.not_after, "while there is time");
}
