//! IP packets for the overlay: numbered, checked, and answered by whoever gets them.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use wire::ip;

use super::{
    clock::SimTime,
    world::{Machine, StationId, World},
};

/// UDP ports of the two directions: a question is answered with the same number.
const ASK: u16 = 7;
const ANSWER: u16 = 8;
const MAGIC: &[u8; 4] = b"test";
/// Headers, magic and number.
const LEAST_V4: usize = ip::IPV4_LEN + ip::UDP_LEN + 12;
const LEAST_V6: usize = ip::IPV6_LEN + ip::UDP_LEN + 12;

/// A test packet: UDP with a number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestPacket {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub number: u64,
    pub answer: bool,
    /// Bytes of the whole IP packet.
    pub len: usize,
}

impl TestPacket {
    pub fn encode(&self) -> Vec<u8> {
        let v4 = self.dst.is_ipv4();
        let len = self.len.max(if v4 { LEAST_V4 } else { LEAST_V6 });
        let mut packet = vec![0; len];
        let header_len = if v4 { ip::IPV4_LEN } else { ip::IPV6_LEN };
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                packet[6] = 0x40;
                packet[8..10].copy_from_slice(&[64, ip::UDP]);
                packet[12..16].copy_from_slice(&src.octets());
                packet[16..20].copy_from_slice(&dst.octets());
                let checksum = ip::ipv4_checksum(&packet[..header_len]);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&((len - header_len) as u16).to_be_bytes());
                packet[6..8].copy_from_slice(&[ip::UDP, 64]);
                packet[8..24].copy_from_slice(&src.octets());
                packet[24..40].copy_from_slice(&dst.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("{self:?} mixes families")
            }
        }
        let (from, to) = if self.answer { (ASK, ANSWER) } else { (ANSWER, ASK) };
        let udp = &mut packet[header_len..];
        udp[..2].copy_from_slice(&from.to_be_bytes());
        udp[2..4].copy_from_slice(&to.to_be_bytes());
        let udp_len = (udp.len() as u16).to_be_bytes();
        udp[4..6].copy_from_slice(&udp_len);
        udp[8..12].copy_from_slice(MAGIC);
        udp[12..20].copy_from_slice(&self.number.to_be_bytes());
        ip::complete(&mut packet);
        packet
    }

    /// Reads a test packet; what is none, or was changed on the way, is nothing.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let header = ip::Header::parse(packet)?;
        let udp = packet.get(header.header_len..header.total_len)?;
        if header.protocol != ip::UDP || udp.get(8..12)? != MAGIC {
            return None;
        }
        let mut again = packet.to_vec();
        if !ip::complete(&mut again) || again != packet {
            return None;
        }
        let answer = match udp.get(2..4)? {
            [0, 7] => false,
            [0, 8] => true,
            _ => return None,
        };
        let number = u64::from_be_bytes(udp.get(12..20)?.try_into().ok()?);
        Some(Self { src: header.src, dst: header.dst, number, answer, len: header.total_len })
    }

    pub fn answered(self) -> Self {
        Self { src: self.dst, dst: self.src, answer: true, ..self }
    }
}

/// Questions in both families and sizes, and when their answers came.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: BTreeMap<u64, (StationId, SimTime)>,
    answered: BTreeMap<u64, Duration>,
    next: u64,
}

impl Traffic {
    /// Asks once; the number names the question.
    pub fn ask<M: Machine>(
        &mut self,
        world: &mut World<M>,
        from: StationId,
        src: IpAddr,
        dst: IpAddr,
        len: usize,
    ) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sent.insert(number, (from, world.now()));
        world.inject(from, TestPacket { src, dst, number, answer: false, len }.encode());
        number
    }

    /// Answers what came out of TUNs and takes the answers. To be called after every short run: an answer leaves
    /// when this is called, but round trips are counted from the times of arrival.
    pub fn settle<M: Machine>(&mut self, world: &mut World<M>) {
        for (at, station, packet) in world.take_delivered() {
            let Some(packet) = TestPacket::decode(&packet) else { continue };
            if !packet.answer {
                world.inject(station, packet.answered().encode());
            } else if let Some(&(from, sent)) = self.sent.get(&packet.number)
                && from == station
            {
                self.answered.entry(packet.number).or_insert(at - sent);
            }
        }
    }

    pub fn round_trip(&self, number: u64) -> Option<Duration> {
        self.answered.get(&number).copied()
    }

    pub fn answered(&self) -> usize {
        self.answered.len()
    }

    pub fn asked(&self) -> usize {
        self.sent.len()
    }

    /// The longest time between two questions that were answered, by when they were asked: what an outage cost
    /// a flow that asks steadily.
    pub fn longest_silence(&self, from: StationId) -> Duration {
        let answered = self.sent.iter().filter(|(number, (station, _))| {
            *station == from && self.answered.contains_key(number)
        });
        let times: Vec<SimTime> = answered.map(|(_, &(_, at))| at).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_packet_comes_back_as_it_went_and_damage_shows() {
        for (src, dst, len) in
            [("10.0.0.1", "10.0.0.2", 1300), ("fd00::1", "fd00::2", 0), ("10.0.0.1", "10.0.0.2", 0)]
        {
            let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
            let packet = TestPacket { src, dst, number: 77, answer: true, len };
            let bytes = packet.encode();
            let read = TestPacket::decode(&bytes).unwrap();
            assert_eq!((read.number, read.answer, read.src, read.dst), (77, true, src, dst));
            assert_eq!(read.len, bytes.len());
            let mut damaged = bytes.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert_eq!(TestPacket::decode(&damaged), None);
        }
    }
}
