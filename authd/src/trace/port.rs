//! The port of a trace: `80/TCP`, `8/ICMP`, or a protocol alone.

use std::{fmt, str::FromStr};

use policy::protocol;

/// Protocol and port of the packets that are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// IP protocol number.
    pub protocol: u8,
    /// Which packets of it.
    pub number: Number,
}

/// What stands before the slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// Nothing: any port, so only what is said about the protocol as a whole counts.
    None,
    /// A port, or a type of ICMP.
    Given(u16),
    /// The name of a port of the destination.
    Named(String),
}

/// The type of ICMP that IANA keeps reserved in both versions: only a rule about every type is about it.
const NO_ICMP_TYPE: u16 = 255;

impl Port {
    /// A number that stands for none in particular: no rule for one port or one type is about it.
    pub(super) const fn of_none(&self) -> u16 {
        if protocol::is_icmp(self.protocol) { NO_ICMP_TYPE } else { 0 }
    }

    /// The port as the kernel matches it: an ICMP type is its upper byte.
    pub(super) const fn in_key(&self, number: u16) -> u16 {
        if protocol::is_icmp(self.protocol) { number << 8 } else { number }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.number {
            Number::None => {}
            Number::Given(number) => write!(f, "{number}/")?,
            Number::Named(name) => write!(f, "{name}/")?,
        }
        match protocol::name(self.protocol) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.protocol),
        }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = match text.split_once('/') {
            Some((number, protocol)) => (Some(number), parse_protocol(protocol)?),
            // A number alone is a port; of protocols, people know the names.
            None if text.parse::<u16>().is_ok() => (Some(text), protocol::TCP),
            None => (None, parse_protocol(text)?),
        };
        let number = number.map_or(Ok(Number::None), |number| parse_number(number, protocol))?;
        Ok(Self { protocol, number })
    }
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    let number = text.parse::<u8>().ok();
    protocol::number(text).or(number).ok_or_else(|| {
        format!("protocol `{text}` is not known; write TCP, UDP, SCTP, ICMP, ICMPv6 or its number")
    })
}

fn parse_number(text: &str, protocol: u8) -> Result<Number, String> {
    let is_icmp = protocol::is_icmp(protocol);
    match text.parse::<u16>() {
        Ok(number) if is_icmp && number > 255 => Err(format!("{number} is no type of ICMP; they end at 255")),
        Ok(number) => Ok(Number::Given(number)),
        Err(_) if text.chars().any(|c| c.is_ascii_alphabetic()) && !is_icmp => {
            Ok(Number::Named(text.to_owned()))
        }
        Err(_) if is_icmp => Err(format!("`{text}` is no type of ICMP; write it as 8/ICMP or 128/ICMPv6")),
        Err(_) => Err(format!("`{text}` is no port; write it as 80/TCP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_users_write_them() {
        for (text, protocol, number, shown) in [
            ("80/TCP", 6, Number::Given(80), "80/TCP"),
            ("80/tcp", 6, Number::Given(80), "80/TCP"),
            ("80", 6, Number::Given(80), "80/TCP"),
            ("53/UDP", 17, Number::Given(53), "53/UDP"),
            ("8/ICMP", 1, Number::Given(8), "8/ICMP"),
            ("128/ICMPv6", 58, Number::Given(128), "128/ICMPv6"),
            ("http/TCP", 6, Number::Named("http".into()), "http/TCP"),
            ("SCTP", 132, Number::None, "SCTP"),
            ("GRE", 47, Number::None, "GRE"),
            ("0/99", 99, Number::Given(0), "0/99"),
        ] {
            let port: Port = text.parse().unwrap();
            assert_eq!(port, Port { protocol, number }, "{text}");
            assert_eq!(port.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_port_is_refused_in_words() {
        for (text, expected) in [
            ("", "protocol `` is not known; write TCP, UDP, SCTP, ICMP, ICMPv6 or its number"),
            ("80/TPC", "protocol `TPC` is not known; write TCP, UDP, SCTP, ICMP, ICMPv6 or its number"),
            ("65536/TCP", "`65536` is no port; write it as 80/TCP"),
            ("-1/TCP", "`-1` is no port; write it as 80/TCP"),
            ("256/ICMP", "256 is no type of ICMP; they end at 255"),
            ("echo/ICMP", "`echo` is no type of ICMP; write it as 8/ICMP or 128/ICMPv6"),
        ] {
            assert_eq!(text.parse::<Port>().unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn a_type_of_icmp_is_the_upper_byte() {
        let port: Port = "8/ICMP".parse().unwrap();
        assert_eq!(port.in_key(8), 0x0800);
        let port: Port = "80/TCP".parse().unwrap();
        assert_eq!(port.in_key(80), 80);
    }
}
