//! Reading a packet by words. What may lie anywhere the compiler would read byte by byte, and put together;
//! but the kernel lets programs read packets at any alignment, where the processor can.

use auth_ebpf_abi::packet::Number;

/// Reads `N` numbers.
///
/// # Safety
/// They lie at `from`, which needs no alignment, in a packet.
#[inline(always)]
pub(crate) unsafe fn read<T: Number, const N: usize>(from: *const T) -> [T; N] {
    let mut numbers = [T::default(); N];
    let mut at = from;
    for number in &mut numbers {
        // SAFETY: the caller's, one number after the other.
        unsafe {
            *number = one(at);
            at = at.add(1);
        }
    }
    numbers
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn one<T: Number>(from: *const T) -> T {
    let value: u64;
    // SAFETY: the caller's; the instructions read that and change nothing.
    unsafe {
        match size_of::<T>() {
            8 => {
                core::arch::asm!("{} = *(u64 *)({} + 0)", out(reg) value, in(reg) from, options(pure, readonly, nostack))
            }
            4 => {
                core::arch::asm!("{} = *(u32 *)({} + 0)", out(reg) value, in(reg) from, options(pure, readonly, nostack))
            }
            _ => {
                core::arch::asm!("{} = *(u16 *)({} + 0)", out(reg) value, in(reg) from, options(pure, readonly, nostack))
            }
        }
        core::mem::transmute_copy(&value)
    }
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn one<T: Number>(from: *const T) -> T {
    // SAFETY: the caller's.
    unsafe { from.read_unaligned() }
}
