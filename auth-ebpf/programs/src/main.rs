//! The programs of authd's datapath, one for each hook. They only read a socket buffer and hand it to the
//! decision in `auth-ebpf-abi`; maps and helpers are behind [`state::Maps`].

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
// On the host this crate is only linted.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the programs are the entry points"))]

mod bench;
mod maps;
mod slots;
mod state;
mod words;

use auth_ebpf_abi::packet::{Bytes, Number, read_directly};
use auth_ebpf_abi::{
    Address, Context, Hook, Rewrite, Setting, State as _, TranslationKind, Verdict, Workspace, come_back,
    decide, hook_of, translate,
};
use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// To pass is to let the next program decide (`TCX_NEXT`): `TC_ACT_OK` would switch it off.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;
/// The type of a VLAN tag, in network order.
const ETH_P_8021Q: u16 = 0x8100_u16.to_be();
/// The address families.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The size of segments where there are several packets in one, each in a buffer of its own: SCTP's. Only the headers
/// that they share are in the linear part.
const GSO_BY_FRAGS: u32 = 0xffff;
/// The type of IPv4, in network order, as a context has it.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;

/// A pod's interface, ingress: what the pod sends.
#[classifier]
#[inline(always)]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromPod)
}

/// A pod's interface, egress: what the pod receives.
#[classifier]
#[inline(always)]
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

/// The hold device, ingress: what the daemon gives back.
#[classifier]
pub fn from_hold(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromHold)
}

/// The hold device, egress: what other hooks have sent there.
#[classifier]
pub fn to_hold(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToHold)
}

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook) -> i32 {
    // SAFETY: the kernel hands a valid context to the program, for as long as it runs.
    let skb = unsafe { &*ctx.skb.skb };
    let mut context = Context {
        hook,
        ifindex: skb.ifindex,
        ingress_ifindex: skb.ingress_ifindex,
        length: skb.len,
        tagged: skb.vlan_present != 0,
        tag: skb.vlan_tci as u16,
        segment: skb.gso_size,
        held_since: 0,
        held_for: 0,
    };
    let holds = matches!(hook, Hook::FromPod | Hook::ToPod);
    if holds && context.tagged && come_back(&state::Maps, &mut context) {
        // SAFETY: the helper takes any context of this kind.
        if unsafe { bpf_skb_vlan_pop(ctx.skb.skb) } != 0 {
            return DROP;
        }
    }
    let Some(workspace) = maps::WORKSPACE.get_ptr_mut(0) else { return DROP };
    // SAFETY: this CPU's own, and no other program of this object runs on it before this one has ended:
    // traffic control runs with bottom halves disabled.
    let workspace = unsafe { &mut *workspace };
    match decide(&state::Maps, &SocketBuffer::new(ctx, hook), &context, workspace) {
        Verdict::Forwarded if matches!(hook, Hook::FromHold) => release(workspace),
        Verdict::Forwarded | Verdict::Audit if holds => pass(ctx, workspace, &context),
        Verdict::Forwarded | Verdict::Audit if matches!(hook, Hook::FromWireguard | Hook::ToWireguard) => {
            tunnel(ctx, workspace, hook)
        }
        Verdict::Forwarded | Verdict::Audit => PASS,
        Verdict::Held => hold(ctx, workspace),
        Verdict::Dropped => DROP,
    }
}

/// Lets a packet go on at a pod's interface, with the addresses that it shall have from here on.
#[inline(always)]
fn pass(ctx: &TcContext, workspace: &Workspace, context: &Context) -> i32 {
    let translation = &workspace.place.translation;
    if translation.kind != TranslationKind::NONE {
        let direction = context.hook.direction();
        if translate(&mut Rewriter::<ETHERNET>(ctx), &workspace.packet, direction, translation).is_none() {
            return DROP;
        }
        if translation.is_hairpin() {
            return turn_round(ctx, context.ifindex);
        }
    }
    match workspace.straight_to() {
        Some((ifindex, pod)) if matches!(context.hook, Hook::FromPod) => hand_over(ifindex, &pod),
        _ => PASS,
    }
}

/// Sends a packet out by the interface of the pod that has this address, by whom the host knows as neighbour there.
#[inline(always)]
fn hand_over(ifindex: u32, pod: &Address) -> i32 {
    let [a, b, c, d] = pod.words().map(u32::to_be);
    let (family, next) = if pod.is_v4() { (AF_INET, [d, 0, 0, 0]) } else { (AF_INET6, [a, b, c, d]) };
    let mut hop = bpf_redir_neigh {
        nh_family: family,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: next },
    };
    // SAFETY: the helper takes any index, and the hop is as long as it says.
    unsafe { bpf_redirect_neigh(ifindex, &mut hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// Sends a packet back to the pod that it comes from.
#[inline(always)]
fn turn_round(ctx: &TcContext, ifindex: u32) -> i32 {
    let Ok([a, b, c, d, e, f, g, h, i, j, k, l]) = ctx.load::<[u8; 12]>(0) else { return DROP };
    let swapped: [u8; 12] = [g, h, i, j, k, l, a, b, c, d, e, f];
    match ctx.store(0, &swapped, 0) {
        // SAFETY: the helper takes any index.
        Ok(()) => unsafe { bpf_redirect(ifindex, 0) as i32 },
        Err(_) => DROP,
    }
}

/// Lets a packet go on at the WireGuard device; one from outside, or back there, under its other address.
#[inline(always)]
fn tunnel(ctx: &TcContext, workspace: &Workspace, hook: Hook) -> i32 {
    let translation = &workspace.place.translation;
    if translation.kind == TranslationKind::NONE {
        return PASS;
    }
    // Seen from the pod: what goes to it has its source changed.
    let direction = hook.direction().reverse();
    match translate(&mut Rewriter::<TUNNEL>(ctx), &workspace.packet, direction, translation) {
        Some(()) => PASS,
        None => DROP,
    }
}

/// Where an Ethernet frame without a tag has its IP header.
const ETHERNET: u32 = 14;
/// Where a packet has it that is in no frame, as the WireGuard device's.
const TUNNEL: u32 = 0;

/// Changes a socket buffer by the kernel's helpers, which know of offloaded checksums. `NETWORK` as of [`Rewrite`].
struct Rewriter<'a, const NETWORK: u32>(&'a TcContext);

impl<const NETWORK: u32> Rewriter<'_, NETWORK> {
    #[inline(always)]
    fn mend(&self, offset: u32, difference: u32, flags: u32) -> Option<()> {
        // SAFETY: the helper takes any context of this kind, and checks the offset itself.
        let outcome = unsafe {
            bpf_l4_csum_replace(self.0.skb.skb, offset, 0, u64::from(difference), u64::from(flags))
        };
        (outcome == 0).then_some(())
    }
}

/// The flag for a checksum that may be 0 for none.
#[inline(always)]
const fn mangled(optional: bool) -> u32 {
    if optional { BPF_F_MARK_MANGLED_0 } else { 0 }
}

impl<const NETWORK: u32> Rewrite for Rewriter<'_, NETWORK> {
    const NETWORK: u32 = NETWORK;

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.0.store(offset as usize, bytes, 0).ok()
    }

    #[inline(always)]
    fn mend_network(&mut self, offset: u32, difference: u32) -> Option<()> {
        // SAFETY: as above.
        let outcome = unsafe { bpf_l3_csum_replace(self.0.skb.skb, offset, 0, u64::from(difference), 0) };
        (outcome == 0).then_some(())
    }

    #[inline(always)]
    fn mend_transport(&mut self, offset: u32, difference: u32, optional: bool) -> Option<()> {
        self.mend(offset, difference, mangled(optional))
    }

    #[inline(always)]
    fn mend_pseudo(&mut self, offset: u32, difference: u32, optional: bool, v6: bool) -> Option<()> {
        self.mend(offset, difference, mangled(optional) | BPF_F_PSEUDO_HDR)?;
        if v6 {
            // The helper takes addresses for having a checksum of their own, as IPv4's have, and mends the sum
            // over the packet that a device may have supplied by this one. Here the two make up for each other.
            // SAFETY: as above. Without such a sum there is nothing to mend, and it says so.
            let _none = unsafe { bpf_csum_update(self.0.skb.skb, difference) };
        }
        Some(())
    }
}

/// Sends a packet to the hold device under its token.
#[inline(always)]
fn hold(ctx: &TcContext, workspace: &Workspace) -> i32 {
    let device = state::Maps.setting(Setting::HoldIfindex) as u32;
    // SAFETY: the helpers take any context of this kind, and any index.
    unsafe {
        match bpf_skb_vlan_push(ctx.skb.skb, ETH_P_8021Q, workspace.token) {
            0 => bpf_redirect(device, 0) as i32,
            _ => DROP,
        }
    }
}

/// Sends a packet from the hold device back to its hook. It keeps its tag, by which that hook knows it.
#[inline(always)]
fn release(workspace: &Workspace) -> i32 {
    let Some((hook, ifindex)) = hook_of(&state::Maps, workspace.token) else { return DROP };
    let flags = if matches!(hook, Hook::FromPod) { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: the helper takes any index.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

/// The bytes of a socket buffer: those at places that are known beforehand in its linear part, where reading
/// costs nothing; others a helper finds wherever they lie.
struct SocketBuffer<'a>(&'a TcContext);

impl<'a> SocketBuffer<'a> {
    #[inline(always)]
    fn new(ctx: &'a TcContext, hook: Hook) -> Self {
        // SAFETY: the kernel hands a valid context to the program, for as long as it runs.
        let skb = unsafe { &*ctx.skb.skb };
        let at_ethernet = !matches!(hook, Hook::FromWireguard | Hook::ToWireguard);
        // No more: of what a sender of TCP keeps to send again, its headers alone are in the linear part, and
        // bringing payload there copies them.
        let wanted = ctx.len().min(read_directly(at_ethernet, skb.protocol == ETH_P_IP));
        // What is brought from a packet's own buffer is missing in that packet.
        if ctx.data() + wanted as usize > ctx.data_end() && skb.gso_size != GSO_BY_FRAGS {
            // What can't be brought there can't be read either, and drops.
            let _there = ctx.pull_data(wanted);
        }
        Self(ctx)
    }
}

impl Bytes for SocketBuffer<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load(offset as usize).ok()
    }

    #[inline(always)]
    fn numbers<T: Number, const N: usize>(&self, offset: u32) -> Option<[T; N]> {
        self.0.load(offset as usize).ok()
    }

    #[inline(always)]
    fn numbers_at<const OFFSET: u32, T: Number, const N: usize>(&self) -> Option<[T; N]> {
        let start = self.0.data() + OFFSET as usize;
        if start + size_of::<[T; N]>() > self.0.data_end() {
            return None;
        }
        // SAFETY: the comparison has shown that these bytes are there.
        Some(unsafe { words::read(start as *const T) })
    }

    #[inline(always)]
    fn segments_length(&self) -> Option<u32> {
        // SAFETY: the kernel hands a valid context to the program, for as long as it runs.
        let skb = unsafe { &*self.0.skb.skb };
        if skb.gso_size == 0 { None } else { Some(skb.len) }
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
