//! Our end of the comparison: dialler and listener as the daemon configures them, for every handshake anew.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::gospiffe::Handshakes;
use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::{CertificateDer, ServerName};
use spire_adapter::tls::{Cipher, Flights, Options, client_config, server_config};
use spire_adapter::{Bundle, Bundles, ExpectedPeer, SpiffeId, Svid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const PROTOCOL: &str = Handshakes::PROTOCOL;

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

    /// Processor time of one handshake, over so many, between ends that have met before.
    pub(crate) fn meeting_again(&self, times: usize) -> Result<f64> {
        self.microseconds(&vec![[self.bundles.clone(), self.bundles.clone()]; times])
    }

    /// The same between ends of which neither has met the other, nor anybody else.
    pub(crate) fn meeting_first(&self, times: usize) -> Result<f64> {
        let bundles = (0..times).map(|_| Ok([self.unused_bundles()?, self.unused_bundles()?]));
        self.microseconds(&bundles.collect::<Result<Vec<_>>>()?)
    }

    /// The same bundles, which have vouched for nobody yet.
    fn unused_bundles(&self) -> Result<Bundles> {
        let read = |bundle: &Bundle| {
            let der: Vec<u8> = bundle.certificates().flat_map(|anchor| anchor.to_vec()).collect();
            Ok(Bundle::from_der(bundle.trust_domain().clone(), &der)?)
        };
        self.bundles.iter().map(read).collect()
    }

    /// A handshake for each pair of bundles, those of its two ends.
    fn microseconds(&self, handshakes: &[[Bundles; 2]]) -> Result<f64> {
        let before = processor_time()?;
        self.runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            for [server, client] in handshakes {
                tokio::try_join!(self.accept(&listener, server), self.dial(&listener, client))?;
            }
            anyhow::Ok(())
        })?;
        let spent = processor_time()? - before;
        Ok(spent.as_secs_f64() * 1e6 / f64::from(u32::try_from(handshakes.len())?))
    }

    fn expected(&self) -> ExpectedPeer {
        let whose: &SpiffeId = self.svid.spiffe_id();
        ExpectedPeer::Exact(whose.clone())
    }

    async fn accept(&self, listener: &TcpListener, bundles: &Bundles) -> Result<()> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let options = options();
        let config = server_config(&self.svid, bundles, self.expected(), PROTOCOL.as_bytes(), &options)?;
        let mut tls = TlsAcceptor::from(config).accept(Flights::new(stream)).await?;
        tls.read_exact(&mut [0]).await?;
        tls.write_all(b"x").await?;
        tls.get_ref().0.conclude()?;
        tls.shutdown().await?;
        Ok(())
    }

    /// With TLS 1.3 a client learns only by reading that it was accepted.
    async fn dial(&self, listener: &TcpListener, bundles: &Bundles) -> Result<()> {
        let options = options();
        let config = client_config(&self.svid, bundles, self.expected(), PROTOCOL.as_bytes(), &options)?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("256.a.test")?;
        let mut tls = TlsConnector::from(config).connect(name, Flights::new(stream)).await?;
        tls.write_all(b"x").await?;
        tls.read_exact(&mut [0]).await?;
        let group = tls.get_ref().1.negotiated_key_exchange_group().context("no key exchange")?;
        ensure!(format!("{:?}", group.name()) == "X25519MLKEM768", "{group:?}");
        Ok(())
    }
}

/// As the daemon proves identities. Go prefers the same cipher suite.
fn options() -> Options {
    Options { cipher: Cipher::Aes128, ..Options::default() }
}

fn processor_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}
