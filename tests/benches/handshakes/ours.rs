//! Our end of the comparison: dialler and listener as the daemon configures them, for every handshake anew.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::{CertificateDer, ServerName};
use spire_adapter::tls::{Options, client_config, server_config};
use spire_adapter::{Bundles, ExpectedPeer, SpiffeId, Svid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) const PROTOCOL: &str = "test/1";

pub(crate) struct Ours {
    svid: Svid,
    bundles: Bundles,
    runtime: Runtime,
}

impl Ours {
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>, key: &[u8], bundles: Bundles) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { svid: Svid::from_chain(chain, key)?, bundles, runtime })
    }

    /// Processor time of one handshake, over so many.
    pub(crate) fn microseconds(&self, times: u32) -> Result<f64> {
        let before = processor_time()?;
        self.runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            for _ in 0..times {
                tokio::try_join!(self.accept(&listener), self.dial(&listener))?;
            }
            anyhow::Ok(())
        })?;
        Ok((processor_time()? - before).as_secs_f64() * 1e6 / f64::from(times))
    }

    fn expected(&self) -> ExpectedPeer {
        let whose: &SpiffeId = self.svid.spiffe_id();
        ExpectedPeer::Exact(whose.clone())
    }

    async fn accept(&self, listener: &TcpListener) -> Result<()> {
        let (stream, _) = listener.accept().await?;
        let options = Options::default();
        let config =
            server_config(&self.svid, &self.bundles, self.expected(), PROTOCOL.as_bytes(), &options)?;
        let mut tls = TlsAcceptor::from(config).accept(stream).await?;
        tls.read_exact(&mut [0]).await?;
        tls.write_all(b"x").await?;
        tls.shutdown().await?;
        Ok(())
    }

    /// With TLS 1.3 a client learns only by reading that it was accepted.
    async fn dial(&self, listener: &TcpListener) -> Result<()> {
        let options = Options::default();
        let config =
            client_config(&self.svid, &self.bundles, self.expected(), PROTOCOL.as_bytes(), &options)?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        let name = ServerName::try_from("256.a.test")?;
        let mut tls = TlsConnector::from(config).connect(name, stream).await?;
        tls.write_all(b"x").await?;
        tls.read_exact(&mut [0]).await?;
        let group = tls.get_ref().1.negotiated_key_exchange_group().context("no key exchange")?;
        ensure!(format!("{:?}", group.name()) == "X25519MLKEM768", "{group:?}");
        Ok(())
    }
}

fn processor_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}
