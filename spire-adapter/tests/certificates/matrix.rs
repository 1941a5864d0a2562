//! Certificates made clause by clause, each row with what the verifier has to say of it.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SanType, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use spire_adapter::{Bundle, Bundles, TrustDomain};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];

/// One row: a chain with the leaf's key, and the expected reason (`None`: accepted).
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) expected: Option<&'static str>,
}

/// The CAs of two trust domains, and one that only pretends.
pub(crate) struct Authorities {
    a: Ca,
    b: Ca,
    evil: Ca,
    expired: Ca,
}

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Authorities {
    pub(crate) fn new() -> Self {
        Self {
            a: Ca::root("A", "spiffe://a.test", |_| {}),
            b: Ca::root("B", "spiffe://b.test", |_| {}),
            evil: Ca::root("A", "spiffe://a.test", |_| {}),
            expired: Ca::root("old", "spiffe://a.test", |params| {
                params.not_before = (SystemTime::now() - 3 * DAY).into();
                params.not_after = (SystemTime::now() - DAY).into();
            }),
        }
    }

    pub(crate) fn bundles(&self) -> Bundles {
        let bundle = |name: &str, der: &[u8]| Bundle::from_der(TrustDomain::new(name).unwrap(), der).unwrap();
        let a = [self.a.certificate.to_vec(), self.expired.certificate.to_vec()].concat();
        [bundle("a.test", &a), bundle("b.test", &self.b.certificate)].into_iter().collect()
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = self.accepted();
        rows.extend(self.names());
        rows.extend(self.usages());
        rows.extend(self.times_and_keys());
        rows.extend(self.chains());
        rows.extend(self.constraints());
        rows
    }

    fn accepted(&self) -> Vec<Row> {
        let a = &self.a;
        vec![
            a.row("00 good", None, |_| {}),
            self.b.row("01 good of a federated domain", None, |leaf| leaf.uri("spiffe://b.test/ns/shop")),
            a.row("02 no EKU", None, |leaf| leaf.params.extended_key_usages.clear()),
            a.row("03 DNS name beside the URI", None, |leaf| {
                leaf.params.subject_alt_names.push(SanType::DnsName("web.test".try_into().unwrap()));
            }),
            a.row("45 just under 2048 bytes", None, |leaf| leaf.uri(&long_id(2048))),
            a.row("57 P-384", None, |leaf| leaf.algorithm = &PKCS_ECDSA_P384_SHA384),
            a.row("58 empty subject, critical SAN", None, |leaf| {
                // rcgen makes the SAN critical then, as RFC 5280 asks.
                leaf.params.distinguished_name = DistinguishedName::new();
            }),
        ]
    }

    fn names(&self) -> Vec<Row> {
        let a = &self.a;
        let id = |name, uri: &'static str, reason| a.row(name, Some(reason), |leaf| leaf.uri(uri));
        vec![
            id("11 unknown trust domain", "spiffe://c.test/x", "unknown_trust_domain"),
            a.row("13 two URIs", Some("several_uri_sans"), |leaf| leaf.add_uri("spiffe://a.test/other")),
            a.row("14 two URIs, one https", Some("several_uri_sans"), |leaf| leaf.add_uri("https://a.test/")),
            a.row("15 no URI", Some("no_uri_san"), |leaf| {
                leaf.params.subject_alt_names = vec![SanType::DnsName("a.test".try_into().unwrap())];
            }),
            a.row("16 no SAN", Some("no_uri_san"), |leaf| leaf.params.subject_alt_names.clear()),
            id("17 https URI", "https://a.test/ns/shop", "spiffe_id_invalid"),
            id("30 root path", "spiffe://a.test", "spiffe_id_without_path"),
            id("31 trailing slash", "spiffe://a.test/ns/", "spiffe_id_invalid"),
            id("32 dot dot", "spiffe://a.test/ns/../x", "spiffe_id_invalid"),
            id("33 dot", "spiffe://a.test/./x", "spiffe_id_invalid"),
            id("34 empty segment", "spiffe://a.test//x", "spiffe_id_invalid"),
            id("35 percent", "spiffe://a.test/n%73", "spiffe_id_invalid"),
            id("36 upper case domain", "spiffe://A.test/ns/shop", "spiffe_id_not_canonical"),
            id("37 port", "spiffe://a.test:80/ns/shop", "spiffe_id_invalid"),
            id("38 user", "spiffe://u@a.test/ns/shop", "spiffe_id_invalid"),
            id("39 query", "spiffe://a.test/ns/shop?x=1", "spiffe_id_invalid"),
            id("40 fragment", "spiffe://a.test/ns/shop#x", "spiffe_id_invalid"),
            id("41 upper case scheme", "SPIFFE://a.test/ns/shop", "spiffe_id_not_canonical"),
            id("42 domain as prefix", "spiffe://a.test.evil/ns/shop", "unknown_trust_domain"),
            a.row("43 not ASCII", Some("spiffe_id_invalid"), |leaf| {
                leaf.params.subject_alt_names.clear();
                leaf.extension(SUBJECT_ALT_NAME, &sequence(6, b"spiffe://a.test/\xc3\xa4"), false);
            }),
            a.row("43 not even UTF-8", Some("malformed"), |leaf| {
                leaf.params.subject_alt_names.clear();
                leaf.extension(SUBJECT_ALT_NAME, &sequence(6, b"spiffe://a.test/\xff"), false);
            }),
            a.row("43 NUL in the ID", Some("spiffe_id_invalid"), |leaf| {
                leaf.params.subject_alt_names.clear();
                leaf.extension(SUBJECT_ALT_NAME, &sequence(6, b"spiffe://a.test/ns\0/shop"), false);
            }),
            a.row("44 oversize", Some("spiffe_id_too_long"), |leaf| leaf.uri(&long_id(2049))),
            a.row("46 domain of 256 bytes", Some("spiffe_id_invalid"), |leaf| {
                leaf.uri(&format!("spiffe://{}/x", "a".repeat(256)));
            }),
            a.row("59 empty subject, SAN not critical", Some("san_not_critical"), |leaf| {
                leaf.params.distinguished_name = DistinguishedName::new();
                leaf.params.subject_alt_names.clear();
                leaf.extension(SUBJECT_ALT_NAME, &sequence(6, b"spiffe://a.test/ns/shop"), false);
            }),
            id("90 another identity", "spiffe://a.test/elsewhere", "unexpected_peer"),
        ]
    }

    fn usages(&self) -> Vec<Row> {
        let a = &self.a;
        let key_usage = |name, reason, usages: &'static [KeyUsagePurpose]| {
            a.row(name, Some(reason), |leaf| leaf.params.key_usages = usages.to_vec())
        };
        let extended = |name, usages: &'static [ExtendedKeyUsagePurpose]| {
            a.row(name, Some("extended_key_usage_incomplete"), |leaf| {
                leaf.params.extended_key_usages = usages.to_vec();
            })
        };
        use ExtendedKeyUsagePurpose as E;
        use KeyUsagePurpose as K;
        vec![
            a.row("18 cA true", Some("leaf_is_ca"), |leaf| {
                leaf.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            key_usage("19 keyCertSign", "leaf_with_cert_sign", &[K::DigitalSignature, K::KeyCertSign]),
            key_usage("20 cRLSign", "leaf_with_crl_sign", &[K::DigitalSignature, K::CrlSign]),
            key_usage("21 no digitalSignature", "digital_signature_missing", &[K::KeyAgreement]),
            key_usage("22 no key usage", "key_usage_missing", &[]),
            a.row("23 key usage not critical", Some("key_usage_not_critical"), |leaf| {
                leaf.params.key_usages.clear();
                leaf.extension(KEY_USAGE, &[3, 2, 7, 0x80], false);
            }),
            a.row("24 no basic constraints", Some("basic_constraints_missing"), |leaf| {
                leaf.params.is_ca = IsCa::NoCa;
            }),
            extended("25 EKU server only", &[E::ServerAuth]),
            extended("26 EKU client only", &[E::ClientAuth]),
            extended("27 EKU code signing", &[E::CodeSigning]),
            extended("28 EKU any", &[E::Any]),
            a.row("60 unknown critical extension", Some("unknown_critical_extension"), |leaf| {
                leaf.extension(&[1, 3, 6, 1, 4, 1, 99999, 1], &[5, 0], true);
            }),
            a.row("63 an extension twice", Some("duplicate_extension"), |leaf| {
                leaf.extension(KEY_USAGE, &[3, 2, 7, 0x80], true);
            }),
        ]
    }

    fn times_and_keys(&self) -> Vec<Row> {
        let a = &self.a;
        let times = |name, reason, from: i64, to: i64| {
            a.row(name, reason, move |leaf| {
                leaf.params.not_before = at(from).into();
                leaf.params.not_after = at(to).into();
            })
        };
        let day = 86_400;
        vec![
            times("50 expired", Some("expired"), -2 * day, -10),
            times("51 not yet", Some("not_yet_valid"), 3600, 2 * day),
            times("51 ahead by less than the tolerance", None, 50, day),
            times("52 ends before it starts", Some("expired"), 30, -30),
            times("53 far future", Some("lifetime_too_long"), -10, 8 * day),
            times("53 seven days", None, -10, 7 * day - 5),
            a.row("57 Ed25519", Some("key_type_not_allowed"), |leaf| leaf.algorithm = &PKCS_ED25519),
        ]
    }

    fn chains(&self) -> Vec<Row> {
        let a = &self.a;
        let self_signed = {
            let leaf = Leaf::new();
            let key = KeyPair::generate().unwrap();
            let certificate = leaf.params.self_signed(&key).unwrap().der().clone();
            Row { name: "61 self-signed", chain: vec![certificate], key, expected: Some("untrusted") }
        };
        let mut rows = vec![
            a.row("10 foreign ID signed by a", Some("untrusted"), |leaf| leaf.uri("spiffe://b.test/ns/shop")),
            self.evil.row("12 other CA of the same name", Some("bad_signature"), |_| {}),
            self_signed,
            self.expired.row("84 anchor expired", Some("anchor_expired"), |_| {}),
            a.int("70 intermediate", None, "spiffe://a.test", |_| {}),
            a.int("71 intermediate is no CA", Some("issuer_not_ca"), "spiffe://a.test", |ca| {
                ca.is_ca = IsCa::ExplicitNoCa;
            }),
            a.int("72 no keyCertSign", Some("issuer_without_cert_sign"), "spiffe://a.test", |ca| {
                ca.key_usages = vec![KeyUsagePurpose::CrlSign];
            }),
            a.int("73 its ID has a path", Some("issuer_spiffe_id_with_path"), "spiffe://a.test/x", |_| {}),
            a.int("74 of another domain", Some("issuer_of_other_trust_domain"), "spiffe://b.test", |_| {}),
            a.int("75 without URI", None, "", |_| {}),
            a.int("75 with two URIs", Some("issuer_spiffe_id_invalid"), "spiffe://a.test", |ca| {
                ca.subject_alt_names.push(uri("spiffe://a.test"));
            }),
            a.int("81 expired", Some("issuer_expired"), "spiffe://a.test", |ca| {
                ca.not_before = at(-7200).into();
                ca.not_after = at(-3600).into();
            }),
            a.int("81 ahead by less than the tolerance", None, "spiffe://a.test", |ca| {
                ca.not_before = at(50).into();
            }),
        ];
        rows.push(self.intermediate_claims_foreign_leaf());
        rows.push(self.path_length());
        rows.push(self.junk_after_leaf());
        rows.push(self.too_many());
        rows
    }

    fn constraints(&self) -> Vec<Row> {
        let uri_tree = |tag: u8, host: &[u8]| {
            // NameConstraints { [tag] { GeneralSubtree { uniformResourceIdentifier } } }
            let subtree = sequence(6, host);
            let mut trees = vec![tag, u8::try_from(subtree.len()).unwrap()];
            trees.extend(subtree);
            let mut constraints = vec![0x30, u8::try_from(trees.len()).unwrap()];
            constraints.extend(trees);
            constraints
        };
        let constrained = |name, tag, host: &[u8]| {
            let content = uri_tree(tag, host);
            self.a.int(name, Some("name_constraint"), "spiffe://a.test", |ca| {
                let mut extension = CustomExtension::from_oid_content(NAME_CONSTRAINTS, content.clone());
                extension.set_criticality(true);
                ca.custom_extensions.push(extension);
            })
        };
        vec![
            constrained("76 URI constraint, satisfied: not supported", 0xa0, b"a.test"),
            constrained("77 URI constraint, violated", 0xa0, b"z.test"),
            constrained("78 URI excluded", 0xa1, b"a.test"),
            self.a.int("79 DNS constraint", None, "spiffe://a.test", |ca| {
                ca.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("a.test".to_owned())],
                    excluded_subtrees: Vec::new(),
                });
            }),
        ]
    }

    fn intermediate_claims_foreign_leaf(&self) -> Row {
        let int = self.a.intermediate("spiffe://b.test", |_| {});
        let mut row = int.row("82 a's intermediate claims b", Some("untrusted"), |leaf| {
            leaf.uri("spiffe://b.test/ns/shop");
        });
        row.chain.push(int.certificate);
        row
    }

    fn path_length(&self) -> Row {
        let upper = self.a.intermediate("spiffe://a.test", |ca| {
            ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        });
        let lower = upper.named_intermediate("lower", "spiffe://a.test", |_| {});
        let mut row = lower.row("80 path length violated", Some("path_length"), |_| {});
        row.chain.extend([lower.certificate, upper.certificate]);
        row
    }

    fn junk_after_leaf(&self) -> Row {
        let other = self.a.row("", None, |leaf| leaf.uri("spiffe://a.test/other"));
        let mut row = self.a.row("91 another leaf in the chain", Some("issuer_not_ca"), |_| {});
        row.chain.extend(other.chain);
        row
    }

    fn too_many(&self) -> Row {
        let mut row = self.a.row("92 nine certificates", Some("too_many_certificates"), |_| {});
        row.chain.extend(std::iter::repeat_n(self.a.certificate.clone(), 8));
        row
    }
}

impl Ca {
    pub(crate) fn root(name: &str, id: &str, edit: impl Fn(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name, id);
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn intermediate(&self, id: &str, edit: impl Fn(&mut CertificateParams)) -> Self {
        self.named_intermediate("intermediate", id, edit)
    }

    fn named_intermediate(&self, name: &str, id: &str, edit: impl Fn(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name, id);
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        // Whatever the certificate says, this one signs.
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A leaf below a new intermediate.
    fn int(
        &self,
        name: &'static str,
        expected: Option<&'static str>,
        id: &str,
        edit: impl Fn(&mut CertificateParams),
    ) -> Row {
        let intermediate = self.intermediate(id, edit);
        let mut row = intermediate.row(name, expected, |_| {});
        row.chain.push(intermediate.certificate);
        row
    }

    pub(crate) fn row(
        &self,
        name: &'static str,
        expected: Option<&'static str>,
        edit: impl Fn(&mut Leaf),
    ) -> Row {
        let mut leaf = Leaf::new();
        edit(&mut leaf);
        let key = KeyPair::generate_for(leaf.algorithm).unwrap();
        let certificate = leaf.params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Row { name, chain: vec![certificate], key, expected }
    }
}

/// A leaf in the making: a good one, until it is edited.
pub(crate) struct Leaf {
    pub(crate) params: CertificateParams,
    algorithm: &'static SignatureAlgorithm,
}

impl Leaf {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.not_before = at(-10).into();
        params.not_after = at(3600).into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
        params.subject_alt_names = vec![uri("spiffe://a.test/ns/shop")];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Self { params, algorithm: &rcgen::PKCS_ECDSA_P256_SHA256 }
    }

    fn uri(&mut self, id: &str) {
        self.params.subject_alt_names = vec![uri(id)];
    }

    fn add_uri(&mut self, id: &str) {
        self.params.subject_alt_names.push(uri(id));
    }

    fn extension(&mut self, oid: &[u64], content: &[u8], critical: bool) {
        let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
        extension.set_criticality(critical);
        self.params.custom_extensions.push(extension);
    }
}

fn ca_params(name: &str, id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(-3600).into();
    params.not_after = at(365 * 86_400).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = if id.is_empty() { Vec::new() } else { vec![uri(id)] };
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.to_owned().try_into().unwrap())
}

/// `SEQUENCE { [tag] content }`, short lengths only.
fn sequence(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    let mut der = vec![0x30, length + 2, 0x80 | tag, length];
    der.extend(content);
    der
}

fn long_id(length: usize) -> String {
    let head = "spiffe://a.test/ns/";
    format!("{head}{}", "x".repeat(length - head.len()))
}

fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}
