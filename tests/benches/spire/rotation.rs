//! What a thousand identities cost while their SVIDs rotate.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use spire_adapter::Subscription;

use crate::Figure;

/// Watches the subscriptions for `time`, in this process; `agent` is the number of SPIRE's agent.
pub(crate) async fn figures(
    subscriptions: &[Subscription],
    agent: u32,
    time: Duration,
) -> Result<Vec<Figure>> {
    let rotated = Arc::new(AtomicU32::new(0));
    let watchers: Vec<_> = subscriptions
        .iter()
        .map(|subscription| {
            let (mut watch, rotated) = (subscription.watch(), Arc::clone(&rotated));
            let mut last = watch.borrow_and_update().svid().cloned();
            tokio::spawn(async move {
                while watch.changed().await.is_ok() {
                    let svid = watch.borrow_and_update().svid().cloned();
                    if svid.is_some() && svid != last {
                        rotated.fetch_add(1, Ordering::Relaxed);
                        last = svid;
                    }
                }
            })
        })
        .collect();
    let (began, own, theirs) = (Instant::now(), cpu("self")?, cpu(&agent.to_string())?);
    tokio::time::sleep(time).await;
    let took = began.elapsed();
    let (own, theirs) = (cpu("self")? - own, cpu(&agent.to_string())? - theirs);
    let count = f64::from(rotated.load(Ordering::Relaxed));
    watchers.iter().for_each(tokio::task::JoinHandle::abort);
    ensure!(count > 0.0, "nothing has rotated in {time:?}");
    let identities = subscriptions.len();
    let share = |spent: Duration| spent.as_secs_f64() / took.as_secs_f64() * 100.0;
    Ok(vec![
        (format!("SVIDs of {identities} identities that rotate, a second"), count / took.as_secs_f64(), ""),
        ("CPU time of client and test for each of these".to_owned(), own.as_secs_f64() * 1e3 / count, "ms"),
        ("CPU of client and test meanwhile, of one core".to_owned(), share(own), "%"),
        ("CPU of SPIRE's agent meanwhile, of one core".to_owned(), share(theirs), "%"),
        ("resident memory of client and test then".to_owned(), resident("self")?, "MB"),
        ("resident memory of SPIRE's agent then".to_owned(), resident(&agent.to_string())?, "MB"),
    ])
}

/// What a process has spent on its own and in the kernel.
fn cpu(process: &str) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name before may hold anything.
    let fields = stat.rsplit(')').next().context("no fields")?.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).sum();
    // USER_HZ, which no Linux has otherwise.
    Ok(Duration::from_millis(ticks * 10))
}

/// Megabytes.
pub(crate) fn resident(process: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(resident.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
