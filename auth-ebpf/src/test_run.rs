//! Runs packets through the loaded programs without any interface (`BPF_PROG_TEST_RUN`).

use std::time::Duration;

use auth_ebpf_abi::{Hook, Verdict};
use aya::maps::{Array, Map, ProgramArray};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TestRun, TestRunOptions};

use crate::Datapath;
use crate::datapath::{program, program_named};
use crate::error::{Error, Source};
use crate::object::attach_type;

/// A packet to run through a program.
#[derive(Clone, Copy, Debug)]
pub struct TestPacket<'a> {
    /// Index of the interface at the hook; the kernel must have it in this network namespace.
    pub ifindex: u32,
    /// Index of the interface by which it came in; 0 if the host made it.
    pub ingress_ifindex: u32,
    /// The frame; at WireGuard's hooks the IP packet.
    pub bytes: &'a [u8],
    /// How often it runs.
    pub repeat: u32,
}

/// Among how many destinations and ports each run chooses: 11.0.0.0 and the addresses after it, and ports
/// from 1 on.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Addresses, at least one and less than 2^20.
    pub addresses: u32,
    /// Ports, at least one and less than 2^12.
    pub ports: u32,
}

/// The program that does nothing, attached until this is dropped.
#[derive(Debug)]
pub struct Baseline {
    _link: FdLink,
}

/// The programs of `programs/src/bench.rs`.
const BASELINE: &str = "baseline";
const VARY: &str = "vary";
/// `TC_ACT_UNSPEC`, by which the next program decides.
const PASS: u32 = -1_i32 as u32;
/// `TC_ACT_REDIRECT`, by which a packet goes to the hold device, or back to its pod.
const REDIRECT: u32 = 7;
/// Size of a `__sk_buff`, and the places in it of the two fields that a test can choose.
const CONTEXT: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

impl Datapath {
    /// What the program of `hook` does with a packet, and how long it takes, on average over the repeats.
    /// Counters, connections and events are touched as by a real one.
    ///
    /// # Errors
    /// If the kernel refuses the packet: it wants an Ethernet header, and an IP header whole where that
    /// announces one.
    pub fn test_run(&mut self, hook: Hook, packet: &TestPacket<'_>) -> Result<(Verdict, Duration), Error> {
        let (value, duration, _) = run(program(&mut self.ebpf, hook)?, packet, None)?;
        Ok((verdict(value), duration))
    }

    /// What the program of `hook` does with a packet, and makes of it.
    ///
    /// # Errors
    /// As for [`Datapath::test_run`].
    pub fn test_run_output(
        &mut self,
        hook: Hook,
        packet: &TestPacket<'_>,
    ) -> Result<(Verdict, Vec<u8>), Error> {
        // Room for a VLAN tag.
        let mut output = vec![0; packet.bytes.len().saturating_add(4)];
        let (value, _, length) = run(program(&mut self.ebpf, hook)?, packet, Some(&mut output))?;
        output.truncate(usize::try_from(length).unwrap_or_default());
        Ok((verdict(value), output))
    }

    /// How long a program takes that does nothing: what every measurement by [`Datapath::test_run`] holds.
    ///
    /// # Errors
    /// As there.
    pub fn test_run_baseline(&mut self, packet: &TestPacket<'_>) -> Result<Duration, Error> {
        Ok(run(self.bench_program(BASELINE)?, packet, None)?.1)
    }

    /// Attaches the program that does nothing where `hook` of `interface` has its own, by TCX: what every program
    /// costs there, whatever it does.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn attach_baseline(&mut self, hook: Hook, interface: &str) -> Result<Baseline, Error> {
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let program = self.bench_program(BASELINE)?;
        let id = program.attach_with_options(interface, attach_type(hook), options).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        Ok(Baseline { _link: FdLink::try_from(link).map_err(failed)? })
    }

    /// How long the program of `hook`, or the one that does nothing, takes if each run chooses another
    /// destination and port, and how long it takes to choose is part of it. The frame is TCP over IPv4
    /// without options.
    ///
    /// # Errors
    /// As for [`Datapath::test_run`].
    pub fn test_run_varied(
        &mut self,
        hook: Option<Hook>,
        packet: &TestPacket<'_>,
        choices: Choices,
    ) -> Result<Duration, Error> {
        let target = match hook {
            Some(hook) => program(&mut self.ebpf, hook)?,
            None => self.bench_program(BASELINE)?,
        };
        let target = target.fd().map_err(failed)?.try_clone().map_err(failed)?;
        let mut targets: ProgramArray<_> = self.bench_map("bench_target")?.try_into().map_err(failed)?;
        targets.set(0, &target, 0).map_err(failed)?;
        let mut slots: Array<_, u32> = self.bench_map("bench_choices")?.try_into().map_err(failed)?;
        for (slot, choices) in (0..).zip([choices.addresses, choices.ports]) {
            slots.set(slot, choices, 0).map_err(failed)?;
        }
        Ok(run(self.bench_program(VARY)?, packet, None)?.1)
    }

    fn bench_program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, Error> {
        let program = program_named(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        Ok(program)
    }

    fn bench_map(&mut self, name: &str) -> Result<&mut Map, Error> {
        self.ebpf.map_mut(name).ok_or_else(|| failed(format!("it has no map {name}")))
    }
}

const fn verdict(value: u32) -> Verdict {
    match value {
        PASS => Verdict::Forwarded,
        REDIRECT => Verdict::Held,
        _ => Verdict::Dropped,
    }
}

/// What the program returns, how long it takes, and how much of `output` the packet fills afterwards.
fn run(
    program: &SchedClassifier,
    packet: &TestPacket<'_>,
    output: Option<&mut [u8]>,
) -> Result<(u32, Duration, u32), Error> {
    let mut context = [0; CONTEXT];
    for (place, value) in [(INGRESS_IFINDEX, packet.ingress_ifindex), (IFINDEX, packet.ifindex)] {
        if let Some(field) = context.get_mut(place..).and_then(|rest| rest.first_chunk_mut()) {
            *field = value.to_ne_bytes();
        }
    }
    let options = TestRunOptions {
        data_in: Some(packet.bytes),
        data_out: output,
        ctx_in: Some(&context),
        repeat: packet.repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(failed)?;
    Ok((result.return_value, result.duration, result.data_size_out))
}

fn failed(error: impl Into<Source>) -> Error {
    Error::Load(error.into())
}
