//! Which addresses are public: all but those of the IANA's special-purpose registries.

use anyhow::Context;
use ipnet::{IpNet, Ipv6Net};
use std::net::{IpAddr, Ipv6Addr};

/// Networks that are not public, or lead to others that may not be
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>, …/iana-ipv6-special-registry).
const SPECIAL: [(&str, &str); 24] = [
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by a carrier (CGNAT)"),
    ("127.0.0.0/8", "loopback"),
    // Not in the registry: Azure's platform, with the keys of the machine that asks.
    ("168.63.129.16/32", "a cloud's metadata"),
    ("169.254.0.0/16", "link-local, with the clouds' metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "for protocols"),
    ("192.0.2.0/24", "for documentation"),
    ("192.31.196.0/24", "AS112"),
    ("192.52.193.0/24", "AMT"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "AS112"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, or broadcast"),
    // Teredo, benchmarks, ORCHID: what of it is public serves nobody's webhooks.
    ("2001::/23", "for protocols, with Teredo"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "6to4, which leads to any IPv4 address"),
    ("2620:4f:8000::/48", "AS112"),
    ("3fff::/20", "for documentation"),
];

/// The only part of IPv6 that is given out. Beyond it are loopback, IPv4-mapped and -compatible addresses, NAT64 with
/// and without a local prefix, unique local (with a cloud's metadata), link-local, site-local, multicast, `SRv6`.
const GLOBAL_UNICAST: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The addresses that may be connected to.
#[derive(Debug)]
pub(crate) struct Addresses {
    special: Vec<(IpNet, &'static str)>,
    global_unicast: Ipv6Net,
    /// `webhooks.allow_private`.
    allowed: Vec<IpNet>,
}

impl Addresses {
    /// All public ones, and those of the networks `allowed`.
    pub(crate) fn new(allowed: &[IpNet]) -> anyhow::Result<Self> {
        let parse = |(network, what): (&str, _)| Ok((network.parse().context("special-purpose networks")?, what));
        let special = SPECIAL.into_iter().map(parse).collect::<anyhow::Result<_>>()?;
        let (address, bits) = GLOBAL_UNICAST;
        Ok(Self { special, global_unicast: Ipv6Net::new(address, bits)?, allowed: allowed.to_vec() })
    }

    /// Whether `address` may be connected to.
    ///
    /// # Errors
    /// What kind of address it is.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        if self.allowed.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        if let Some((_, what)) = self.special.iter().find(|(network, _)| network.contains(&address)) {
            return Err(what);
        }
        match address {
            IpAddr::V6(address) if !self.global_unicast.contains(&address) => Err("not global unicast"),
            IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_PUBLIC: [&str; 57] = [
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.255",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2620:4f:8000::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];

    #[test]
    fn special_addresses_are_refused_and_their_neighbours_are_not() {
        let addresses = Addresses::new(&[]).unwrap();
        for address in NOT_PUBLIC {
            assert!(addresses.check(address.parse().unwrap()).is_err(), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2000::1",
            "2001:200::1",
            "2001:db7::1",
            "2003::1",
            "2606:4700:4700::1111",
            "2a00::1",
        ] {
            assert_eq!(addresses.check(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn networks_inside_can_be_allowed_and_nothing_else_with_them() {
        let addresses = Addresses::new(&["10.1.0.0/16".parse().unwrap(), "fd12::/16".parse().unwrap()]).unwrap();
        for address in ["10.1.255.255", "fd12::1"] {
            assert_eq!(addresses.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        for address in ["10.2.0.0", "127.0.0.1", "::ffff:10.1.0.1", "64:ff9b::a01:1", "fd13::1"] {
            assert!(addresses.check(address.parse().unwrap()).is_err(), "{address}");
        }
    }
}
