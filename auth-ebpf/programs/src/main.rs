//! The programs of authd's datapath, one for each hook. They only read a socket buffer and hand it to the
//! decision in `auth-ebpf-abi`; maps and helpers are behind [`state::Maps`].

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// On the host this crate is only linted.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the programs are the entry points"))]

mod bench;
mod maps;
mod state;

use auth_ebpf_abi::packet::Bytes;
use auth_ebpf_abi::{Context, Hook, Verdict, decide};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// To pass is to let the next program decide (`TCX_NEXT`): `TC_ACT_OK` would switch it off.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// A pod's interface, ingress: what the pod sends.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromPod)
}

/// A pod's interface, egress: what the pod receives.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToPod)
}

/// The WireGuard device, ingress.
#[classifier]
pub fn from_wireguard(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromWireguard)
}

/// The WireGuard device, egress.
#[classifier]
pub fn to_wireguard(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToWireguard)
}

/// An uplink, ingress.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromUplink)
}

/// An uplink, egress.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToUplink)
}

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook) -> i32 {
    // SAFETY: the kernel hands a valid context to the program, for as long as it runs.
    let skb = unsafe { &*ctx.skb.skb };
    let context = Context {
        hook,
        ifindex: skb.ifindex,
        ingress_ifindex: skb.ingress_ifindex,
        length: skb.len,
        tagged: skb.vlan_present != 0,
    };
    let Some(workspace) = maps::WORKSPACE.get_ptr_mut(0) else { return DROP };
    // SAFETY: this CPU's own, and no other program of this object runs on it before this one has ended:
    // traffic control runs with bottom halves disabled.
    let workspace = unsafe { &mut *workspace };
    match decide(&state::Maps, &SocketBuffer(ctx), &context, workspace) {
        Verdict::Forwarded | Verdict::Audit => PASS,
        Verdict::Dropped => DROP,
    }
}

/// The bytes of a socket buffer, wherever its fragments lie.
struct SocketBuffer<'a>(&'a TcContext);

impl Bytes for SocketBuffer<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load(offset as usize).ok()
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel looks for it; no helper that is used here asks for the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
