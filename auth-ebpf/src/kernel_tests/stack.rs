//! The programs' stack, by the rules of Linux 6.1's verifier (`check_max_stack_depth`). Later kernels round
//! less, and take what it refuses.

use std::collections::BTreeMap;

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};

use crate::object::OBJECT;

/// `MAX_BPF_STACK`.
const STACK: u64 = 512;
/// `MAX_CALL_FRAMES`.
const FRAMES: usize = 8;
/// What frames are rounded up to, with or without a JIT compiler.
const GRAIN: u64 = 32;
const INSTRUCTION: usize = 8;
const FRAME_POINTER: usize = 10;

/// A function's section and address.
type Place = (usize, u64);

struct Function {
    name: String,
    /// Bytes of stack that it uses.
    frame: u64,
    calls: Vec<Place>,
}

#[derive(Clone, Copy)]
struct Instruction {
    class: u8,
    /// All but the class.
    operation: u8,
    to: usize,
    from: usize,
    offset: i64,
    immediate: i64,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        Self {
            class: bytes[0] & 0x07,
            operation: bytes[0] & 0xf8,
            to: usize::from(bytes[1] & 0x0f),
            from: usize::from(bytes[1] >> 4),
            offset: i16::from_le_bytes([bytes[2], bytes[3]]).into(),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]).into(),
        }
    }

    /// A call of another function of the object.
    const fn is_call(self) -> bool {
        self.class == 5 && self.operation == 0x80 && self.from == 1
    }
}

/// How far below the frame pointer the code goes. The compiler makes an address on the stack in two
/// instructions, one after the other, so that it is enough to follow registers line by line.
fn frame(code: &[Instruction]) -> u64 {
    let mut pointers = [None; 16];
    pointers[FRAME_POINTER] = Some(0);
    let mut lowest = 0;
    for it in code {
        let at = |register: usize| pointers[register].map(|pointer: i64| pointer + it.offset);
        let touched = match it.class {
            1 => at(it.from),
            2 | 3 => at(it.to),
            _ => None,
        };
        let made = match (it.class, it.operation) {
            (7, 0xb8) => pointers[it.from],
            (7, 0x00) => pointers[it.to].map(|pointer| pointer + it.immediate),
            _ => None,
        };
        lowest = [touched, made].into_iter().flatten().fold(lowest, i64::min);
        match it.class {
            0 | 1 | 4 | 7 => pointers[it.to] = made,
            5 if it.operation == 0x80 => pointers[..6].fill(None),
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

fn functions() -> BTreeMap<Place, Function> {
    let elf: ElfFile64<'_> = ElfFile64::parse(OBJECT).unwrap();
    let mut functions = BTreeMap::new();
    for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let section = elf.section_by_index(symbol.section_index().unwrap()).unwrap();
        let named: BTreeMap<u64, Place> = section
            .relocations()
            .filter_map(|(at, relocation)| {
                let RelocationTarget::Symbol(target) = relocation.target() else { return None };
                let target = elf.symbol_by_index(target).unwrap();
                Some((at, (target.section_index()?.0, target.address())))
            })
            .collect();
        let start = usize::try_from(symbol.address()).unwrap();
        let bytes = &section.data().unwrap()[start..][..usize::try_from(symbol.size()).unwrap()];
        let code: Vec<_> = bytes.chunks(INSTRUCTION).map(Instruction::read).collect();
        let places = (symbol.address()..).step_by(INSTRUCTION);
        let calls = code.iter().zip(places).filter(|(it, _)| it.is_call()).map(|(it, at)| {
            let (section, base) = named.get(&at).copied().unwrap_or((section.index().0, at));
            (section, base.strict_add_signed((it.immediate + 1) * 8))
        });
        let function =
            Function { name: symbol.name().unwrap().to_owned(), frame: frame(&code), calls: calls.collect() };
        functions.insert((section.index().0, symbol.address()), function);
    }
    functions
}

/// The chain of calls from `place` on that needs most: how much, and what each function of it uses.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place, frames: usize) -> (u64, String) {
    let function = &functions[&place];
    assert!(frames < FRAMES, "{} is called too deep", function.name);
    let callees = function.calls.iter().map(|callee| deepest(functions, *callee, frames + 1));
    let (depth, rest) = callees.max().unwrap_or_default();
    let own = function.frame.max(1).next_multiple_of(GRAIN);
    (own + depth, format!(" → {} {}{rest}", function.name, function.frame))
}

#[test]
fn no_chain_of_calls_needs_more_stack_than_there_is() {
    let functions = functions();
    let (depth, chain) = functions.keys().map(|place| deepest(&functions, *place, 0)).max().unwrap();
    assert!(depth <= STACK, "{depth} bytes: {}", chain.trim_start_matches(" → "));
}
