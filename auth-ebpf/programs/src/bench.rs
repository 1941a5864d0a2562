//! What only the benchmark loads, and nobody attaches: a program that does nothing, to be taken off every
//! measurement, and one that makes each run another packet.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

/// How many destination addresses and how many ports there are to choose from.
#[btf_map(name = "bench_choices")]
static CHOICES: Array<u32, 2> = Array::new();

/// The program that gets the varied packet.
#[btf_map(name = "bench_target")]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// In an IPv4 frame without options: the last three bytes of the destination, and TCP's destination port.
const DESTINATION: usize = 14 + 17;
const PORT: usize = 14 + 20 + 2;

/// Nothing.
#[classifier]
pub fn baseline(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Chooses destination and port at random, and hands the packet on.
#[classifier]
pub fn vary(ctx: TcContext) -> i32 {
    let [Some(addresses), Some(ports)] = [CHOICES.get(0), CHOICES.get(1)] else { return TC_ACT_UNSPEC };
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    // Multiplied instead of divided: addresses by the lower 20 bits, ports by the upper 12.
    let [_, a, b, c] = ((((random & 0xf_ffff) as u64 * *addresses as u64) >> 20) as u32).to_be_bytes();
    let port = 1 + (((random >> 20) * *ports) >> 12);
    let [_, _, d, e] = port.to_be_bytes();
    if ctx.store(DESTINATION, &[a, b, c], 0).is_err() || ctx.store(PORT, &[d, e], 0).is_err() {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: nothing here needs to be dropped.
    unsafe { TARGET.tail_call(&ctx, 0) };
    TC_ACT_UNSPEC
}
