//! What one member is sent: the table's entry of it, with a certificate and keys, whenever something of that is new.

use std::sync::Arc;

use bytes::Bytes;
use rpc::feed::{Desired, Epoch, MAX_RECORDS};
use session::issuer::{FIRST_EPOCH, Issuer, RENEW_AFTER_S, VALIDITY_S};
use wire::{
    certificate::{self, CAPABILITY_TRANSIT, Prefix, Signed},
    id::NodeKeys,
};
use zeroize::Zeroize;

use super::{Attributes, Member, MemberKey, Network, Table};

/// A member that has a session: its keys, and what it was sent last.
#[derive(Debug)]
pub struct Holder {
    keys: NodeKeys,
    sent: Option<Sent>,
    credentials: Option<Credentials>,
    told_to_retire: bool,
}

#[derive(Debug)]
struct Sent {
    revision: u64,
    issued: u64,
    epochs: Vec<u32>,
    records: Arc<Vec<Bytes>>,
}

/// What was signed for the member, and of what.
#[derive(Debug)]
struct Credentials {
    root: wire::id::SignKey,
    issued: u64,
    capabilities: u32,
    said: Attributes,
    certificate: Signed,
    attributes: Signed,
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub enum Next {
    Nothing,
    /// The table does not know the member, or not yet.
    Unknown,
    Send(Box<Desired>),
    Retire,
}

impl Holder {
    pub fn new(keys: NodeKeys) -> Self {
        Self { keys, sent: None, credentials: None, told_to_retire: false }
    }

    pub fn keys(&self) -> NodeKeys {
        self.keys
    }

    /// Compares the table with what was sent; `now` is unix seconds. What is returned counts as sent.
    pub fn next(&mut self, table: &Table, network: &str, member: &MemberKey, now: u64) -> Next {
        if table.retires(network, member) {
            if std::mem::replace(&mut self.told_to_retire, true) {
                return Next::Nothing;
            }
            self.sent = None;
            return Next::Retire;
        }
        let Some(network) = table.networks.get(network) else { return Next::Unknown };
        let Some(member) = network.members.get(member) else { return Next::Unknown };
        self.told_to_retire = false;
        let issued = self.sign(network, member, now);
        let epochs = epochs(network);
        if let Some(sent) = &self.sent
            && sent.revision == member.revision
            && sent.issued == issued
            && sent.epochs == epochs
            && (Arc::ptr_eq(&sent.records, &network.records) || sent.records == network.records)
        {
            return Next::Nothing;
        }
        let Some(credentials) = &self.credentials else { return Next::Nothing };
        let desired = Desired {
            revision: member.revision,
            sidecar: member.sidecar.to_json(),
            root: network.issuer.root().0.to_vec(),
            certificate: Some(credentials.certificate.clone()),
            attributes: Some(credentials.attributes.clone()),
            epochs: epochs.iter().map(|epoch| keys_of(&network.issuer, *epoch)).collect(),
            records: records(&network.records),
            traceparent: member.traceparent.clone(),
        };
        self.sent = Some(Sent {
            revision: member.revision,
            issued,
            epochs,
            records: Arc::clone(&network.records),
        });
        Next::Send(Box::new(desired))
    }

    /// When the certificate is to be renewed, in unix seconds.
    pub fn renew_at(&self) -> Option<u64> {
        self.credentials.as_ref().map(|credentials| credentials.issued + RENEW_AFTER_S)
    }

    /// Signs a certificate and attributes unless those there are still stand; returns when that was.
    fn sign(&mut self, network: &Network, member: &Member, now: u64) -> u64 {
        let transit = member.sidecar.roles.transit.unwrap_or(false);
        let capabilities = if transit { CAPABILITY_TRANSIT } else { 0 };
        let root = network.issuer.root();
        if let Some(held) = &self.credentials
            && held.root == root
            && held.capabilities == capabilities
            && held.said == member.attributes
            && now < held.issued + RENEW_AFTER_S
        {
            return held.issued;
        }
        // A serial is never used twice, even if two things change within a second.
        let issued = self.credentials.as_ref().map_or(now, |held| now.max(held.issued + 1));
        let until = issued + VALIDITY_S;
        self.credentials = Some(Credentials {
            root,
            issued,
            capabilities,
            said: member.attributes.clone(),
            certificate: network.issuer.certificate(self.keys, issued, issued, until, capabilities),
            attributes: network.issuer.attributes(&attributes(
                network,
                self.keys,
                &member.attributes,
                issued,
            )),
        });
        issued
    }
}

/// The attributes to sign: what the table says, and the address that follows from the key.
fn attributes(
    network: &Network,
    keys: NodeKeys,
    said: &Attributes,
    issued: u64,
) -> certificate::Attributes {
    let automatic = network.issuer.network().address_of(keys.node()).into();
    let addresses = said.addresses.iter().copied().chain([automatic]);
    certificate::Attributes {
        sign: keys.sign.0.to_vec(),
        hostname: said.hostname.clone(),
        addresses: addresses
            .map(|address| Prefix::new(address, if address.is_ipv4() { 32 } else { 128 }))
            .collect(),
        prefixes: said
            .prefixes
            .iter()
            .map(|net| Prefix::new(net.network(), net.prefix_len()))
            .collect(),
        any_prefix: false,
        groups: said.groups.clone(),
        serial: issued,
        not_after: issued + VALIDITY_S,
    }
}

fn epochs(network: &Network) -> Vec<u32> {
    let current = network.issuer.current_epoch();
    let mut epochs = network.epochs.clone();
    if epochs.is_empty() {
        epochs = vec![current.saturating_sub(1).max(FIRST_EPOCH).min(current), current];
    }
    epochs.sort_unstable();
    epochs.dedup();
    epochs
}

fn keys_of(issuer: &Issuer, epoch: u32) -> Epoch {
    let mut keys = issuer.epoch(epoch);
    let message = Epoch { epoch, psk: keys.psk.to_vec(), group: keys.group.to_vec() };
    keys.zeroize();
    message
}

/// As many records as fit.
fn records(all: &[Bytes]) -> Vec<Vec<u8>> {
    let mut left = MAX_RECORDS;
    let mut records = Vec::new();
    for record in all {
        let Some(rest) = left.checked_sub(record.len()) else { break };
        left = rest;
        records.push(record.to_vec());
    }
    records
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
    use session::{certificate::check_attributes, identity::Identity};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn table() -> Table {
        let member = Member {
            revision: 7,
            sidecar: Arc::default(),
            attributes: Attributes {
                addresses: vec!["100.112.0.7".parse().unwrap()],
                prefixes: vec!["10.42.7.0/24".parse().unwrap()],
                hostname: "n1".into(),
                groups: vec![],
            },
            retire: false,
            traceparent: String::new(),
        };
        let network = Network {
            issuer: Arc::new(Issuer::generate(&mut ChaCha12Rng::from_seed([1; 32]))),
            epochs: vec![2, 1],
            members: [(key(), member)].into(),
            records: Arc::new(vec![]),
        };
        Table { networks: [("prod".to_owned(), network)].into(), whole: false }
    }

    fn key() -> MemberKey {
        MemberKey::Node("n1".into())
    }

    fn holder() -> Holder {
        Holder::new(Identity::from_bytes(&[3; 64]).keys())
    }

    fn sent(holder: &mut Holder, table: &Table, now: u64) -> Desired {
        match holder.next(table, "prod", &key(), now) {
            Next::Send(desired) => *desired,
            other @ (Next::Nothing | Next::Unknown | Next::Retire) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_gets_what_stands_for_it_once() {
        let (table, mut holder) = (table(), holder());

        let desired = sent(&mut holder, &table, NOW);

        assert_eq!(desired.revision, 7);
        assert_eq!(desired.epochs.iter().map(|keys| keys.epoch).collect::<Vec<_>>(), [1, 2]);
        let issuer = &table.networks["prod"].issuer;
        let sign = holder.keys().sign;
        let attributes =
            check_attributes(&desired.attributes.unwrap(), &issuer.root(), &sign, NOW).unwrap();
        let automatic = issuer.network().address_of(holder.keys().node()).into();
        for (prefix, allowed) in [
            (Prefix::new([100, 112, 0, 7].into(), 32), true),
            (Prefix::new([100, 112, 0, 8].into(), 32), false),
            (Prefix::new([10, 42, 7, 0].into(), 24), true),
            (Prefix::new([10, 42, 0, 0].into(), 16), false),
            (Prefix::new(automatic, 128), true),
        ] {
            assert_eq!(session::certificate::allows(&attributes, &prefix), allowed, "{prefix:?}");
        }
        assert_eq!(holder.next(&table, "prod", &key(), NOW + 60), Next::Nothing);
    }

    #[test]
    fn whatever_changes_is_sent_and_only_what_must_is_signed_anew() {
        fn network(table: &mut Table) -> &mut Network {
            table.networks.get_mut("prod").unwrap()
        }
        let (mut table, mut holder) = (table(), holder());
        let first = sent(&mut holder, &table, NOW);

        network(&mut table).members.get_mut(&key()).unwrap().revision = 8;
        let second = sent(&mut holder, &table, NOW + 1);
        assert_eq!((second.revision, &second.certificate), (8, &first.certificate));

        network(&mut table).epochs = vec![2, 3];
        assert_eq!(sent(&mut holder, &table, NOW + 2).epochs.len(), 2);
        network(&mut table).records = Arc::new(vec![Bytes::from_static(b"record")]);
        assert_eq!(sent(&mut holder, &table, NOW + 3).records, [b"record"]);
        network(&mut table).records = Arc::new(vec![Bytes::from_static(b"record")]);
        assert_eq!(holder.next(&table, "prod", &key(), NOW + 3), Next::Nothing);

        network(&mut table).members.get_mut(&key()).unwrap().attributes.groups = vec!["g".into()];
        let signed = sent(&mut holder, &table, NOW);
        assert_ne!(signed.attributes, second.attributes);
        assert!(holder.renew_at() > Some(NOW + RENEW_AFTER_S));

        let renewed = sent(&mut holder, &table, NOW + RENEW_AFTER_S + 9);
        assert_ne!(renewed.certificate, signed.certificate);
    }

    #[test]
    fn the_epoch_in_force_and_the_one_before_are_given_unless_the_table_says_otherwise() {
        let mut network = table().networks.remove("prod").unwrap();
        for (said, current, given) in [
            (vec![], 0, vec![0]),
            (vec![], 1, vec![1]),
            (vec![], 2, vec![1, 2]),
            (vec![9, 8, 9], 8, vec![8, 9]),
        ] {
            network.epochs = said;
            network.issuer = Arc::new(network.issuer.at_epoch(current));
            assert_eq!(epochs(&network), given);
        }
    }

    #[test]
    fn whoever_is_to_retire_is_told_once_and_whoever_is_unknown_nothing() {
        let (mut table, mut holder) = (table(), holder());
        assert_eq!(holder.next(&table, "test", &key(), NOW), Next::Unknown);
        let stranger = MemberKey::Node("n2".into());
        assert_eq!(holder.next(&table, "prod", &stranger, NOW), Next::Unknown);

        table.networks.get_mut("prod").unwrap().members.get_mut(&key()).unwrap().retire = true;
        assert_eq!(holder.next(&table, "prod", &key(), NOW), Next::Retire);
        assert_eq!(holder.next(&table, "prod", &key(), NOW), Next::Nothing);
    }

    #[test]
    fn members_of_a_network_that_is_gone_retire_once_that_is_sure() {
        let (mut table, mut holder) = (table(), holder());
        table.networks.clear();
        assert_eq!(holder.next(&table, "prod", &key(), NOW), Next::Unknown);

        table.whole = true;
        assert_eq!(holder.next(&table, "prod", &key(), NOW), Next::Retire);
    }

    #[test]
    fn records_that_do_not_fit_are_left_out() {
        let record = Bytes::from(vec![0; 1000]);
        let all = vec![record; 500];

        assert_eq!(records(&all).len(), MAX_RECORDS / 1000);
    }
}
