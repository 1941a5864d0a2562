//! The filters of an interface's `clsact` qdisc, listed by netlink (rtnetlink(7), tc-bpf(8)).
#![expect(clippy::wildcard_enum_match_arm, reason = "netlink's enumerations grow; we read a few of each")]

use std::io;

use aya::programs::TcAttachType;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `ETH_P_ALL`, as `tcm_info` has it.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// A filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Lower ones come first.
    pub(crate) priority: u16,
    /// Its handle; 0 stands for the list of filters with this priority itself.
    pub(crate) handle: u32,
    /// It is, or leads, a list of BPF programs for all protocols, into which ours fit.
    pub(crate) is_bpf: bool,
    /// Name of its program.
    pub(crate) name: String,
    /// Id of its program.
    pub(crate) program: u32,
}

/// The filters at an interface and direction, in the order in which packets meet them.
pub(crate) fn list(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<Filter>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = RouteNetlinkMessage::GetTrafficFilter(request(ifindex, direction)?);
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut filters = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(filters),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    filters.extend(read(&filter));
                }
                _ => {}
            }
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(ifindex: u32, direction: TcAttachType) -> io::Result<TcMessage> {
    let index = i32::try_from(ifindex).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut request = TcMessage::with_index(index);
    request.header.parent = match direction {
        TcAttachType::Ingress => TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT },
        TcAttachType::Egress => TcHandle { minor: TcHandle::MIN_EGRESS, ..TcHandle::CLSACT },
        TcAttachType::Custom(parent) => parent.into(),
    };
    Ok(request)
}

/// A filter of the first chain; packets meet others only when a filter of this one sends them there.
fn read(message: &TcMessage) -> Option<Filter> {
    let priority = u16::try_from(message.header.info >> 16).ok()?;
    let protocol = u16::try_from(message.header.info & 0xffff).ok()?;
    let mut filter = Filter { priority, handle: message.header.handle.into(), ..Filter::default() };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Chain(chain) if *chain != 0 => return None,
            TcAttribute::Kind(kind) => {
                filter.is_bpf = kind == TcFilterBpf::KIND && protocol == ALL_PROTOCOLS;
            }
            TcAttribute::Options(options) => filter.read(options),
            _ => {}
        }
    }
    Some(filter)
}

impl Filter {
    fn read(&mut self, options: &[TcOption]) {
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => self.name.clone_from(name),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => self.program = *id,
                _ => {}
            }
        }
    }
}
