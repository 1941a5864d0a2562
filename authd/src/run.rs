//! Runs what the command line names, and turns the outcome into an exit code.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    app,
    cli::{AuthorityArgs, Cli, Command, LogArgs, OperatorArgs, RunArgs, TunnelArgs},
    config::{Config, ConfigError, parse_duration},
    logging::{Format, LogConfig},
    operator,
};

/// Exit code for a configuration that is refused (`EX_CONFIG` of sysexits).
const EXIT_CONFIG: u8 = 78;

/// Keeps keys in this process' memory out of core dumps and away from other processes of this user.
fn forbid_dumps() {
    if let Err(errno) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%errno, "core dumps of this process can't be forbidden");
    }
}

/// Runs `cli` to its end.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let outcome = match cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run))) {
        Command::Run(args) => daemon(*args),
        Command::Tunnel(args) => tunnel(args),
        Command::Operator(args) => operator(*args),
        Command::Authority(args) => authority(args),
        Command::Validate(args) => validate(*args),
        Command::Version => {
            say(&format!("authd {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("authd: {error:#}"));
            if error.downcast_ref::<ConfigError>().is_some() {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn daemon(args: RunArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), args.settings)?;
    config.log.install()?;
    forbid_dumps();
    runtime()?.block_on(async {
        let shutdown = shutdown_on_signal()?;
        app::run(config, shutdown).await
    })
}

fn validate(args: RunArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), args.settings)?;
    say(&format!("{config:#?}"));
    Ok(())
}

fn tunnel(args: TunnelArgs) -> anyhow::Result<()> {
    let mut log = log_config(args.log)?;
    // It logs the ordinary end of an idle session as an error.
    log.level.push_str(",boringtun=off");
    log.install()?;
    forbid_dumps();
    runtime()?.block_on(async {
        let shutdown = shutdown_on_signal()?;
        let config = wg_mesh::tunnel::Config { socket: args.socket, interface: args.interface };
        wg_mesh::tunnel::run(config, shutdown).await?;
        Ok(())
    })
}

fn operator(args: OperatorArgs) -> anyhow::Result<()> {
    let config = operator::Config::load(args.config.as_deref(), args.settings)?;
    config.log.install()?;
    forbid_dumps();
    runtime()?.block_on(async {
        let shutdown = shutdown_on_signal()?;
        if args.dry_run {
            let plan = operator::plan(&config).await?;
            say(plan.trim_end());
            return Ok(());
        }
        if args.once { operator::once(&config).await } else { operator::run(config, shutdown).await }
    })
}

fn authority(args: AuthorityArgs) -> anyhow::Result<()> {
    log_config(args.log)?.install()?;
    forbid_dumps();
    let svid_ttl = parse_duration(&args.svid_ttl).ok_or_else(|| ConfigError::Invalid {
        key: "svid-ttl",
        value: args.svid_ttl.clone(),
        reason: "is no duration such as 30m or 1h".into(),
    })?;
    let trust_domain =
        args.trust_domain.parse().map_err(|error: spiffe::SpiffeIdError| ConfigError::Invalid {
            key: "trust-domain",
            value: args.trust_domain.clone(),
            reason: format!("is no trust domain: {error}"),
        })?;
    runtime()?.block_on(async {
        let shutdown = shutdown_on_signal()?;
        let mut config = spire_adapter::authority::Config::new(trust_domain, args.dir);
        config.nodes = args.nodes;
        config.svid_ttl = svid_ttl;
        let running = spire_adapter::authority::Authority::start(config)?;
        shutdown.cancelled().await;
        running.shutdown().await;
        Ok(())
    })
}

fn log_config(args: LogArgs) -> Result<LogConfig, ConfigError> {
    Ok(LogConfig {
        format: Format::from_setting(args.log_format.as_deref())?,
        level: args.log_level.unwrap_or_else(|| "info".into()),
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the async runtime")
}

/// A token that the first SIGTERM or SIGINT cancels; a second signal ends the process at once.
fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("can't handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't handle SIGINT")?;
    let shutdown = token.clone();
    tokio::spawn(async move {
        for attempt in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if attempt > 0 {
                std::process::exit(1);
            }
            tracing::info!("shutting down; a second signal ends the process at once");
            shutdown.cancel();
        }
    });
    Ok(token)
}

#[expect(clippy::print_stdout, reason = "the answer to a command of a person")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "logging may not have started")]
fn complain(line: &str) {
    eprintln!("{line}");
}
