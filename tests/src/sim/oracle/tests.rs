use super::*;

const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);
const S: NodeId = NodeId([9; 16]);
const STRANGER: NodeId = NodeId([7; 16]);

#[test]
fn a_mesh_over_a_server_is_sound() {
    assert_eq!(mesh().wrongs(), []);
}

#[test]
fn each_wrong_is_seen() {
    let wrong = |change: fn(&mut Mesh)| {
        let mut mesh = mesh();
        change(&mut mesh);
        let wrongs = mesh.wrongs();
        assert_eq!(wrongs.len(), 1, "{wrongs:?}");
        wrongs[0].clone()
    };
    let prefix_b = "10.0.0.2/32".parse().unwrap();

    assert_eq!(wrong(|mesh| view(mesh, B).lsdb = 2), Wrong::LsdbsDiffer { a: A, b: B });
    assert_eq!(
        wrong(|mesh| view(mesh, S).next = [(A, Next::Direct), (B, Next::Via(A))].into()),
        Wrong::Loop { from: A, to: B, way: vec![A, S, A] }
    );
    assert_eq!(
        wrong(|mesh| view(mesh, S).next = [(A, Next::Direct)].into()),
        Wrong::DeadEnd { from: A, to: B, way: vec![A, S] }
    );
    assert_eq!(
        wrong(|mesh| view(mesh, A).routes.clear()),
        Wrong::NoRoute { from: A, to: B, prefix: prefix_b }
    );
    assert_eq!(
        wrong(|mesh| view(mesh, A).routes.values_mut().for_each(|owner| *owner = A)),
        Wrong::WrongOwner { from: A, prefix: prefix_b, routed_to: A }
    );
    assert_eq!(
        wrong(|mesh| view(mesh, A).routes.extend([("10.9.0.0/16".parse().unwrap(), STRANGER)])),
        Wrong::Stale { from: A, to: STRANGER }
    );
}

#[test]
fn components_are_what_edges_join() {
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| NodeId([n; 16]));
    let components = components([a, b, c, d], [(a, c), (c, b), (a, NodeId([7; 16]))]);
    assert_eq!(components, [BTreeSet::from([a, b, c]), BTreeSet::from([d])]);
}

fn view(mesh: &mut Mesh, node: NodeId) -> &mut View {
    mesh.views.get_mut(&node).unwrap()
}

/// Two members that know each other over a server.
fn mesh() -> Mesh {
    let member = |own: &str, other: NodeId, others: &str| View {
        lsdb: 1,
        routes: [(others.parse().unwrap(), other)].into(),
        next: [(other, Next::Via(S))].into(),
        owns: [own.parse().unwrap()].into(),
        server: false,
        deaf: false,
    };
    let server = View {
        lsdb: 1,
        next: [(A, Next::Direct), (B, Next::Direct)].into(),
        server: true,
        ..View::default()
    };
    Mesh {
        views: [
            (A, member("10.0.0.1/32", B, "10.0.0.2/32")),
            (B, member("10.0.0.2/32", A, "10.0.0.1/32")),
            (S, server),
        ]
        .into(),
        components: components([A, B, S], [(A, S), (B, S)]),
    }
}
