use super::*;

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

#[test]
fn a_run_arrives_as_the_same_datagrams() {
    let sockets = UdpSockets::new(None);
    let (a, b) = (sockets.bind(LOCAL.into()).unwrap(), sockets.bind(LOCAL.into()).unwrap());
    let run: Vec<u8> = (0..10u8).flat_map(|number| [number; 100]).chain([11; 30]).collect();

    assert_eq!(a.send(b.local(), &run, 100), 0);

    let datagrams = receive_all(&b, 11);
    assert_eq!(datagrams[..10], (0..10u8).map(|number| vec![number; 100]).collect::<Vec<_>>());
    assert_eq!(datagrams[10], [11; 30]);
}

#[test]
fn without_segmentation_offload_a_run_arrives_all_the_same() {
    let sockets = UdpSockets::new(None);
    let (a, b) = (sockets.bind(LOCAL.into()).unwrap(), sockets.bind(LOCAL.into()).unwrap());
    a.gso.store(false, Ordering::Relaxed);

    assert_eq!(a.send(b.local(), &[7; 250], 100), 0);

    assert_eq!(receive_all(&b, 3).iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
}

#[test]
fn a_refused_datagram_does_not_break_the_socket() {
    let sockets = UdpSockets::new(None);
    let (a, b) = (sockets.bind(LOCAL.into()).unwrap(), sockets.bind(LOCAL.into()).unwrap());
    let gone = sockets.bind(LOCAL.into()).unwrap();
    let nobody = gone.local();
    sockets.close(gone.id());
    drop(gone);

    assert!(sockets.send(a.id(), nobody, b"x", None));
    assert!(sockets.send(b.id(), a.local(), b"y", Some(64)));

    assert_eq!(receive_all(&a, 1), [b"y"]);
}

#[test]
fn a_port_is_bound_in_both_families_and_numbers_are_not_reused() {
    let sockets = UdpSockets::new(None);
    let both = sockets.bind_dual(0).unwrap();
    let ports: Vec<_> = both.iter().map(|socket| socket.local().port()).collect();
    assert!(ports.iter().all(|&port| port == ports[0] && port != 0));

    sockets.close(both[0].id());
    let next = sockets.bind(LOCAL.into()).unwrap();

    assert!(both.iter().all(|socket| socket.id() != next.id()));
    assert!(!sockets.send(both[0].id(), next.local(), b"x", None));
    assert_eq!(sockets.table().len(), both.len());
}

fn receive_all(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buf = vec![0; 65_535];
    let mut datagrams = Vec::new();
    while datagrams.len() < count {
        if let Some(received) = socket.receive(&mut buf) {
            datagrams.extend(buf[..received.len].chunks(received.segment).map(<[u8]>::to_vec));
        } else {
            std::thread::yield_now();
        }
    }
    datagrams
}
