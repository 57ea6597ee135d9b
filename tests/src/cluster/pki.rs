//! The certificates of a cluster: one authority, a server, as many users as one likes.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

/// Every request is one line in the log, written when it is answered.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

pub(super) struct Pki {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Pki {
    /// Makes authority, certificate of the server at `address` and the keys of ServiceAccount tokens, as files in `folder`.
    pub(super) fn new(folder: &Path, address: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("easynet-tests", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let authority = CertifiedIssuer::self_signed(params, key()).expect("our own parameters");
        let pki = Self { folder: folder.to_owned(), authority };
        pki.write("ca.crt", &pki.authority.pem());
        pki.write("ca.key", &pki.authority.key().serialize_pem());
        pki.write("audit.yaml", AUDIT);

        let tokens = key();
        pki.write("sa.key", &tokens.serialize_pem());
        pki.write("sa.pub", &tokens.public_key_pem());

        let names = ["localhost", "kubernetes.default.svc", address, "10.96.0.1"];
        let (certificate, key) = pki.server("kube-apiserver", &names);
        pki.write("apiserver.crt", &certificate);
        pki.write("apiserver.key", &key);
        pki
    }

    pub(super) fn authority_der(&self) -> Vec<u8> {
        self.authority.der().to_vec()
    }

    /// Certificate and key of a server with these names and addresses, as PEM.
    pub(super) fn server(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names and addresses of ours");
        params.distinguished_name = name(common_name, &[]);
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Certificate and key of a user, as PEM.
    pub(super) fn client(&self, user: &str, groups: &[&str]) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups);
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes `FILE.conf`, the kubeconfig of a user.
    pub(super) fn kubeconfig(&self, file: &str, url: &str, user: &str, groups: &[&str]) {
        let (certificate, key) = self.client(user, groups);
        self.write(&format!("{file}.crt"), &certificate);
        self.write(&format!("{file}.key"), &key);
        let path = |name: &str| self.folder.join(name).display().to_string();
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {"certificate-authority": path("ca.crt"), "server": url}}],
            "users": [{"name": "user", "user": {
                "client-certificate": path(&format!("{file}.crt")),
                "client-key": path(&format!("{file}.key")),
            }}],
            "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "context",
        });
        self.write(&format!("{file}.conf"), &config.to_string());
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> (String, String) {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = key();
        let certificate = params.signed_by(&key, &self.authority).expect("our own parameters");
        (certificate.pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).expect("a file in target");
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key of P-256")
}

fn name(user: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name
}
