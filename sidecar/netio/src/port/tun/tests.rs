use super::*;
use crate::netns::{in_netns, ip};

#[test]
fn a_tun_says_what_is_in_force_and_its_name_is_taken_once() {
    in_netns(
        "port::tun::tests::a_tun_says_what_is_in_force_and_its_name_is_taken_once",
        async |_group| {
            let tun = Tun::open("ezdtun%d").unwrap();
            assert_eq!(tun.name(), "ezdtun0");
            assert!(tun.offloads().virtio && tun.offloads().tcp, "{}", tun.offloads());
            assert!(matches!(Tun::open("ezdtun0"), Err(TunError::NameTaken(_))));
            assert!(
                tun.read(&mut vec![0; READ_LEN]).is_err_and(|error| {
                    // Down: the kernel says so rather than "nothing yet".
                    error.raw_os_error() == Some(libc::EIO)
                }) || tun.read(&mut vec![0; READ_LEN]).unwrap().is_none()
            );
        },
    );
}

#[test]
fn a_persistent_tun_outlives_its_owner_with_all_that_is_on_it() {
    in_netns(
        "port::tun::tests::a_persistent_tun_outlives_its_owner_with_all_that_is_on_it",
        async |_group| {
            let tun = Tun::open("ezdtun0").unwrap();
            tun.persist(true).unwrap();
            ip("addr add 100.112.0.1/32 dev ezdtun0");
            ip("link set ezdtun0 up");
            ip("route add 10.9.0.0/16 dev ezdtun0 table 77");
            drop(tun);
            assert!(ip("addr show dev ezdtun0").contains("100.112.0.1/32"));

            let successor = Tun::open("ezdtun0").unwrap();

            assert!(ip("route show table 77").starts_with("10.9.0.0/16"));
            assert!(successor.offloads().tcp, "{}", successor.offloads());
            successor.persist(false).unwrap();
            drop(successor);
            assert!(!ip("-o link").contains("ezdtun0"));
        },
    );
}

#[test]
fn a_tun_that_somebody_removed_says_so() {
    in_netns("port::tun::tests::a_tun_that_somebody_removed_says_so", async |_group| {
        let tun = Tun::open("ezdtun0").unwrap();
        ip("link del ezdtun0");

        let error = tun.read(&mut vec![0; READ_LEN]).unwrap_err();

        assert!(Tun::is_gone(&error), "{error}");
    });
}

#[test]
fn a_name_that_no_interface_may_have_is_refused() {
    for name in ["", "a/b", "a b", "a:b", "sixteen-letters-"] {
        assert!(matches!(Tun::open(name), Err(TunError::BadName(_))), "{name}");
    }
}

#[test]
fn errors_say_what_to_do() {
    let of = |code| TunError::of("open", "ez0", io::Error::from_raw_os_error(code)).to_string();

    assert!(of(libc::ENOENT).contains("modprobe tun"));
    assert!(of(libc::EPERM).contains("CAP_NET_ADMIN"));
    assert!(of(libc::EBUSY).contains("ez0 is in use"));
}
