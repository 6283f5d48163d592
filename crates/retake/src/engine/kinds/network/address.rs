//! What kind of address an address is, whichever way it is written. Pure.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{NetworkError, address_in};

/// What kind of address an address is. One that holds an IPv4 address (mapped, of NAT64 or of 6to4) is of that one's
/// kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    /// Anybody's.
    Public,
    /// No address at all; it reaches this machine.
    Unspecified,
    /// This machine's.
    Loopback,
    /// Of a private network; with IPv6, unique-local or site-local.
    Private,
    /// Of the local link.
    LinkLocal,
    /// Behind the address translation of a carrier.
    Shared,
    /// Of a cloud's service that hands out a machine's credentials.
    Metadata,
    /// Only for examples.
    Documentation,
    /// Only for measurements.
    Benchmarking,
    /// Of many.
    Multicast,
    /// For other uses than being reached.
    Reserved,
}

impl Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Unspecified => "unspecified, which is this machine",
            Self::Loopback => "of this machine",
            Self::Private => "private",
            Self::LinkLocal => "of the local link",
            Self::Shared => "shared behind a carrier's address translation",
            Self::Metadata => "of a cloud's metadata service",
            Self::Documentation => "only for documentation",
            Self::Benchmarking => "only for benchmarks",
            Self::Multicast => "a multicast address",
            Self::Reserved => "reserved",
        })
    }
}

/// Where clouds hand out credentials. One of them, that of Azure, is public by its number.
const METADATA: [IpAddr; 10] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
];

/// The names of those services.
pub(super) const METADATA_NAMES: [&str; 5] =
    ["metadata.google.internal", "metadata.goog", "metadata", "instance-data", "instance-data.ec2.internal"];

/// Returns where a name is that is known without being looked up, or nothing.
pub(super) fn known(name: &str) -> Vec<IpAddr> {
    if name == "localhost" || name.ends_with(".localhost") {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else if METADATA_NAMES.contains(&name) {
        vec![METADATA[0]]
    } else {
        Vec::new()
    }
}

impl AddressKind {
    /// Returns the kind of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            _ if METADATA.contains(&address) => Self::Metadata,
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, 0, 0, 0] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [169, 254, ..] => Self::LinkLocal,
            [100, 64..=127, ..] => Self::Shared,
            [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Documentation,
            [198, 18..=19, ..] => Self::Benchmarking,
            [224..=239, ..] => Self::Multicast,
            // This network, the protocols' own, relays of 6to4, and what was never given out.
            [0, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => return Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => return Self::Loopback,
            _ => {}
        }
        if let Some(inner) = embedded(address.into()) {
            let kind = Self::of(inner.into());
            // Nothing routes an address of the compatible form.
            let is_lost = kind == Self::Public && address.segments()[..6] == [0; 6];
            return if is_lost { Self::Reserved } else { kind };
        }
        match address.segments() {
            [0xff00..=0xffff, ..] => Self::Multicast,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Self::Private,
            [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Documentation,
            [0x2001, 2, 0, ..] => Self::Benchmarking,
            // The protocols' own, Teredo among them, which hides an IPv4 address.
            [0x2001, 0..=0x1ff, ..] => Self::Reserved,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

/// Returns the IPv4 address that an IPv6 address stands for: mapped, compatible, of NAT64, or of 6to4.
pub(super) fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => inner(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0x2002, high, low, ..] => inner(high, low),
        _ => None,
    }
}

/// The addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    first: IpAddr,
    /// How many of its bits are the same in all.
    bits: u32,
}

impl Range {
    /// Returns the range of one address.
    pub(super) fn of(address: IpAddr) -> Self {
        Self { first: address, bits: width(address) }
    }

    /// Reads an address or a range; `None` where it is neither, but may be a name.
    pub(super) fn parse(entry: &str) -> Result<Option<Self>, NetworkError> {
        let Some((address, length)) = entry.split_once('/') else {
            return Ok(address_in(entry).map(Self::of));
        };
        let unknown = || NetworkError::Entry { entry: entry.to_owned() };
        let address = address_in(address).ok_or_else(unknown)?;
        let bits = length.parse().ok().filter(|bits| *bits <= width(address)).ok_or_else(unknown)?;
        let first = from_number(address, number(address) & mask(address, bits));
        if first != address {
            let meant = format!("{first}/{bits}");
            return Err(NetworkError::Range { entry: entry.to_owned(), meant });
        }
        Ok(Some(Self { first, bits }))
    }

    /// Tells whether an address lies in it.
    pub(super) fn holds(self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4()
            && number(address) & mask(address, self.bits) == number(self.first)
    }

    /// Tells whether it is this address and no other.
    pub(super) fn is(self, address: IpAddr) -> bool {
        let address = embedded(address).map_or(address, IpAddr::from);
        self.first == address && self.bits == width(address)
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns an address as a number whose leading bits are the address's.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_number(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => {
            let [a, b, c, d, ..] = number.to_be_bytes();
            Ipv4Addr::new(a, b, c, d).into()
        }
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

fn mask(like: IpAddr, bits: u32) -> u128 {
    let bits = bits.min(width(like));
    u128::MAX.checked_shl(128 - bits).unwrap_or(0)
}
