use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::net::UdpSocket;

use super::*;

const DEADLINE: Duration = Duration::from_millis(600);
const HOST: [u8; 4] = [192, 0, 2, 7];

#[tokio::test]
async fn a_server_that_hangs_is_an_error_in_time_and_holds_nobody_else_up() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let hanging = resolver(&[silent.local_addr().unwrap()], &[]);
    let started = Instant::now();
    let ticks = async {
        let mut ticks = 0;
        loop {
            tokio::time::sleep(DEADLINE / 20).await;
            ticks += 1;
            if started.elapsed() > DEADLINE / 2 {
                return ticks;
            }
        }
    };

    let names = ["a.test", "b.test", "c.test"].map(|name| hanging.addresses(name));
    let (outcomes, ticks) = tokio::join!(futures_util::future::join_all(names), ticks);

    assert_eq!(outcomes, [Err(Failure::Timeout), Err(Failure::Timeout), Err(Failure::Timeout)]);
    let elapsed = started.elapsed();
    assert!(elapsed < DEADLINE * 2, "took {elapsed:?}");
    assert!(ticks >= 5, "only {ticks} ticks");
    // And it is not asked again at once.
    let again = Instant::now();
    assert_eq!(hanging.addresses("a.test").await, Err(Failure::Timeout));
    assert!(again.elapsed() < DEADLINE / 4);
}

#[tokio::test]
async fn more_lookups_than_places_all_end_in_time() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let hanging = resolver(&[silent.local_addr().unwrap()], &[]);
    let names: Vec<String> = (0..3 * MAX_LOOKUPS).map(|n| format!("host{n}.test")).collect();
    let started = Instant::now();

    let outcomes =
        futures_util::future::join_all(names.iter().map(|name| hanging.addresses(name))).await;

    assert!(outcomes.iter().all(|outcome| *outcome == Err(Failure::Timeout)));
    assert!(started.elapsed() < DEADLINE * 2, "took {:?}", started.elapsed());
}

#[tokio::test]
async fn our_own_servers_step_in_for_one_that_hangs() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = Server::start().await;
    let resolver = resolver(&[silent.local_addr().unwrap()], &[server.addr]);

    assert_eq!(resolver.addresses("relay.test").await, Ok(vec![IpAddr::from(HOST)]));
}

#[tokio::test]
async fn an_answer_is_asked_for_once() {
    let server = Server::start().await;
    let resolver = resolver(&[server.addr], &[]);

    let (one, two) =
        tokio::join!(resolver.addresses("relay.test"), resolver.addresses("relay.test"));
    let asked = server.asked.load(Ordering::Relaxed);

    assert_eq!(one, Ok(vec![IpAddr::from(HOST)]));
    assert_eq!(one, two);
    assert_eq!(resolver.addresses("relay.test").await, one);
    assert_eq!(server.asked.load(Ordering::Relaxed), asked);
    assert!(asked <= 2, "A and AAAA once each, not {asked}");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_so() {
    let server = Server::start().await;
    let resolver = resolver(&[server.addr], &[]);
    assert_eq!(resolver.addresses("nobody.test").await, Err(Failure::NotFound));
}

#[tokio::test]
async fn an_address_needs_no_server() {
    let resolver = resolver(&[], &[]);
    assert_eq!(resolver.addresses("192.0.2.1").await, Ok(vec![IpAddr::from([192, 0, 2, 1])]));
    assert_eq!(resolver.addresses("[2001:db8::1]").await.unwrap().len(), 1);
    assert!(matches!(resolver.addresses("relay.test").await, Err(Failure::Failed(_))));
}

#[tokio::test]
async fn the_hosts_file_is_read() {
    let config = Config { own: Vec::new(), ..Config::default() };
    let resolver = Resolver::new(config, TaskGroup::new("test"));
    assert!(resolver.addresses("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
}

fn resolver(first: &[SocketAddr], own: &[SocketAddr]) -> Resolver {
    let config =
        Config { first: Servers::Fixed(first.to_vec()), own: own.to_vec(), deadline: DEADLINE };
    Resolver::new(config, TaskGroup::new("test"))
}

/// A name server that knows one host's IPv4 address.
struct Server {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    group: TaskGroup,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (group, counter) = (TaskGroup::new("server"), asked.clone());
        group.spawn("name server", async move {
            let mut buffer = [0; 1500];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await?;
                counter.fetch_add(1, Ordering::Relaxed);
                socket.send_to(&answer(&buffer[..len]), from).await?;
            }
        });
        Self { addr, asked, group }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.group.cancel();
    }
}

fn answer(question: &[u8]) -> Vec<u8> {
    const A: [u8; 2] = [0, 1];
    let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let known = question[12..].starts_with(b"\x05relay");
    let has_address = known && question[name_end..name_end + 2] == A;
    let code = if known { 0x80 } else { 0x83 };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, code, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
    answer.extend(&question[12..name_end + 4]);
    if has_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(HOST);
    }
    answer
}
