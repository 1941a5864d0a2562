//! The kernel's enums in the interface's terms. The numbers are the same, save `Direction`'s.

use auth_ebpf_abi as abi;

use super::v1;

macro_rules! same_numbers {
    ($($name:ident),*) => {$(
        impl From<abi::$name> for v1::$name {
            fn from(value: abi::$name) -> Self {
                Self::try_from(value as i32).unwrap_or_default()
            }
        }
    )*};
}
same_numbers!(AuthType, DropReason, Hook, Mode, Verdict);

impl From<abi::Direction> for v1::Direction {
    fn from(direction: abi::Direction) -> Self {
        match direction {
            abi::Direction::Ingress => Self::Ingress,
            abi::Direction::Egress => Self::Egress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::word::Word;

    #[test]
    fn every_drop_reason_of_the_kernel_has_its_word() {
        for reason in abi::DropReason::ALL {
            assert_eq!(v1::DropReason::from(*reason).word(), reason.as_str());
        }
        assert_eq!(v1::DropReason::ALL.len(), abi::DropReason::ALL.len() + 1);
    }

    #[test]
    fn every_hook_of_the_kernel_has_its_word() {
        for hook in abi::Hook::ALL {
            assert_eq!(v1::Hook::from(hook).word().to_ascii_lowercase(), hook.as_str());
        }
    }

    #[test]
    fn verdicts_modes_and_authentication_types_have_their_words() {
        use abi::Verdict::{Audit, Dropped, Forwarded, Held};
        for verdict in [Forwarded, Dropped, Audit, Held] {
            assert_eq!(v1::Verdict::from(verdict).word(), verdict.as_str());
        }
        for mode in [abi::Mode::Observe, abi::Mode::Enforce] {
            assert_eq!(v1::Mode::from(mode).word().to_ascii_lowercase(), mode.as_str());
        }
        for kind in [abi::AuthType::Disabled, abi::AuthType::Spire, abi::AuthType::AlwaysFail] {
            let word = v1::AuthType::from(kind).word().to_ascii_lowercase().replace('_', "-");
            assert_eq!(word, kind.as_str());
        }
    }
}
