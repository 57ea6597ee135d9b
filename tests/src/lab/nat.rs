//! NATs from nftables, each as it behaves on a Linux router.

/// A kind of NAT; mapping / filtering in RFC 4787's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// No translation: the LAN's addresses are routed (the backbone knows no way back, so only the router itself is reached).
    None,
    /// EIM, port preserving / APDF: what `masquerade` does.
    PortRestricted,
    /// EIM / EIF.
    FullCone,
    /// EIM / ADF: whoever was sent to may answer from any port.
    Restricted,
    /// EIM / EIF, and what the LAN sends to the router's own address comes back in.
    Hairpin,
    /// EIM with other ports / APDF.
    OtherPort,
    /// A port per destination address / APDF.
    AddressDependent,
    /// A random port of a small block per destination / APDF: a carrier's or a cloud's.
    PortBlock,
    /// A new random port per destination / APDF.
    Symmetric,
    /// The next port per flow / APDF.
    Sequential,
    /// Port restricted, and its INPUT chain accepts: an early packet takes the mapping away.
    Leaky,
    /// Only TCP to 80, 443 and the default port passes.
    UdpBlocked,
}

impl Nat {
    /// The rules of a router whose WAN address is `wan`.
    pub(super) fn rules(self, wan: &str) -> String {
        let source = match self {
            Self::None => String::new(),
            Self::PortRestricted
            | Self::Leaky
            | Self::UdpBlocked
            | Self::FullCone
            | Self::Restricted => "  oifname \"wan0\" masquerade\n".to_owned(),
            Self::Hairpin => format!(
                "  oifname \"wan0\" masquerade\n  oifname \"lan0\" ct status dnat snat to {wan}\n"
            ),
            Self::AddressDependent => {
                let ports: Vec<String> =
                    (0..64).map(|step| format!("{step} : {}", 40_000 + step)).collect();
                format!(
                    "  oifname \"wan0\" meta l4proto udp snat to {wan} : jhash ip saddr . ip daddr . udp sport mod 64 map {{ {} }}\n  oifname \"wan0\" masquerade\n",
                    ports.join(", ")
                )
            }
            Self::PortBlock => {
                "  oifname \"wan0\" meta l4proto udp masquerade to :40000-40511 fully-random\n  oifname \"wan0\" masquerade\n".to_owned()
            }
            Self::OtherPort => format!(
                "  oifname \"wan0\" meta l4proto udp snat to {wan} : jhash ip saddr . udp sport mod 4 map {{ 0 : 40000, 1 : 40001, 2 : 40002, 3 : 40003 }}\n  oifname \"wan0\" masquerade\n"
            ),
            Self::Symmetric => "  oifname \"wan0\" masquerade fully-random\n".to_owned(),
            Self::Sequential => {
                let ports: Vec<String> =
                    (0..256).map(|step| format!("{step} : {}", 40_000 + step)).collect();
                format!(
                    "  oifname \"wan0\" meta l4proto udp snat to {wan} : numgen inc mod 256 map {{ {} }}\n  oifname \"wan0\" masquerade\n",
                    ports.join(", ")
                )
            }
        };
        let input = if self == Self::Leaky {
            String::new()
        } else {
            " chain input {\n  type filter hook input priority 0;\n  iifname \"wan0\" ct state new drop\n }\n".to_owned()
        };
        let out = if self == Self::UdpBlocked {
            "  iifname \"lan0\" tcp dport { 80, 443, 11010 } accept\n"
        } else {
            "  iifname \"lan0\" accept\n"
        };
        let cone = matches!(self, Self::FullCone | Self::Restricted | Self::Hairpin);
        let restricted = self == Self::Restricted;
        let (mut sets, mut learn, mut lead) = (String::new(), String::new(), String::new());
        if cone {
            sets += " map eim {\n  type inet_service : ipv4_addr . inet_service\n  flags dynamic,timeout\n  timeout 5m\n }\n";
            let mut learned = "  oifname \"wan0\" ct direction original update @eim { udp sport : ct original ip saddr . ct original proto-src }\n".to_owned();
            let mut known = "";
            if restricted {
                sets += " set sent {\n  type ipv4_addr . inet_service\n  flags dynamic,timeout\n  timeout 5m\n }\n";
                learned +=
                    "  oifname \"wan0\" meta l4proto udp update @sent { ip daddr . udp sport }\n";
                known = "ip saddr . udp dport @sent ";
            }
            learn = format!(
                " chain learn {{\n  type filter hook postrouting priority 110;\n{learned} }}\n"
            );
            let mut led = format!("  iifname \"wan0\" {known}dnat ip to udp dport map @eim\n");
            if self == Self::Hairpin {
                led +=
                    &format!("  iifname \"lan0\" ip daddr {wan} dnat ip to udp dport map @eim\n");
            }
            lead = format!(" chain lead {{\n  type nat hook prerouting priority -100;\n{led} }}\n");
        }
        format!(
            "table ip nat {{\n{sets}{lead} chain source {{\n  type nat hook postrouting priority 100;\n{source} }}\n{learn}}}\n\
             table ip gate {{\n{input} chain forward {{\n  type filter hook forward priority 0; policy drop;\n  \
             ct state established,related accept\n{out}  iifname \"wan0\" ct status dnat accept\n }}\n}}\n"
        )
    }
}

/// IPv6 is not translated: a router lets out what the LAN sends, and in what answers it.
pub(super) const FIREWALL6: &str = "table ip6 gate {
 chain forward {
  type filter hook forward priority 0; policy drop;
  ct state established,related accept
  iifname \"lan0\" accept
  icmpv6 type packet-too-big accept
 }
}
";
