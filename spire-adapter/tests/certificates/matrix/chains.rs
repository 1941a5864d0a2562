//! Rows that differ in what comes after the leaf, and in how it is signed.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as E, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints,
};

use super::making::{Ca, Leaf, at, extension, uri};
use super::{Authorities, Row, der};

const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];

pub(super) fn chains(authorities: &Authorities) -> Vec<Row> {
    let Authorities { a, evil, expired, ending, .. } = authorities;
    let purposes = |name, reason, purposes: &[E]| {
        a.int(name, reason, "spiffe://a.test", |ca| ca.extended_key_usages = purposes.to_vec())
    };
    vec![
        a.row("10 foreign ID signed by a", Some("untrusted"), |leaf| leaf.uri("spiffe://b.test/ns/shop")),
        evil.row("12 other CA of the same name", Some("bad_signature"), |_| {}),
        self_signed(),
        with_its_own_root(),
        a.int("70 intermediate", None, "spiffe://a.test", |_| {}),
        same_subject(a),
        two_intermediates(a, "70 intermediates in the wrong order", None, true),
        two_intermediates(a, "80 path length kept", Some(1), false),
        more(a, "70 the root after the leaf", &[a]),
        more(a, "70 a CA that is not needed", &[&a.intermediate("spiffe://a.test", |_| {})]),
        a.int("71 intermediate is no CA", Some("issuer_not_ca"), "spiffe://a.test", |ca| {
            ca.is_ca = IsCa::ExplicitNoCa;
        }),
        a.int("71 no basic constraints", Some("issuer_not_ca"), "spiffe://a.test", |ca| {
            ca.is_ca = IsCa::NoCa;
        }),
        a.int("72 no keyCertSign", Some("issuer_without_cert_sign"), "spiffe://a.test", |ca| {
            ca.key_usages = vec![KeyUsagePurpose::CrlSign];
        }),
        a.int("72 no key usage", Some("issuer_without_cert_sign"), "spiffe://a.test", |ca| {
            ca.key_usages.clear();
        }),
        a.int("73 its ID has a path", Some("issuer_spiffe_id_with_path"), "spiffe://a.test/x", |_| {}),
        a.int("73 its URI is no SPIFFE ID", Some("issuer_spiffe_id_invalid"), "https://a.test", |_| {}),
        a.int("74 of another domain", Some("issuer_of_other_trust_domain"), "spiffe://b.test", |_| {}),
        a.int("75 without URI", None, "", |_| {}),
        a.int("75 with two URIs", Some("issuer_spiffe_id_invalid"), "spiffe://a.test", |ca| {
            ca.subject_alt_names.push(uri("spiffe://a.test"));
        }),
        path_length(a),
        a.int("81 expired", Some("issuer_expired"), "spiffe://a.test", |ca| {
            ca.not_before = at(-7200).into();
            ca.not_after = at(-3600).into();
        }),
        a.int("81 not yet valid", Some("issuer_expired"), "spiffe://a.test", |ca| {
            ca.not_before = at(3600).into();
        }),
        a.int("81 ends before the leaf", None, "spiffe://a.test", |ca| {
            ca.not_after = at(1800).into();
        }),
        a.int("81 ahead by less than the tolerance", None, "spiffe://a.test", |ca| {
            ca.not_before = at(50).into();
        }),
        claims_foreign_leaf(a),
        expired.row("84 anchor expired", Some("anchor_expired"), |_| {}),
        ending.row("84 anchor ends before the leaf", None, |_| {}),
        purposes("85 issuer for servers and clients", None, &[E::ServerAuth, E::ClientAuth]),
        purposes("85 issuer for servers", Some("issuer_extended_key_usage"), &[E::ServerAuth]),
        purposes("85 issuer for clients", Some("issuer_extended_key_usage"), &[E::ClientAuth]),
        purposes("85 issuer for code", Some("issuer_extended_key_usage"), &[E::CodeSigning]),
        junk_after_leaf(a),
        more(a, "92 eight certificates", &[a; 7]),
        Row { expected: Some("too_many_certificates"), ..more(a, "92 nine certificates", &[a; 8]) },
        too_large(a),
    ]
}

pub(super) fn signatures(authorities: &Authorities) -> Vec<Row> {
    let a = &authorities.a;
    let mut forged = a.row("62 a bit of the signature flipped", Some("bad_signature"), |_| {});
    forged.chain[0] = der::forged(&forged.chain[0]);
    let mut above =
        a.int("62 a bit of the issuer's signature flipped", Some("bad_signature"), "spiffe://a.test", |_| {});
    above.chain[1] = der::forged(&above.chain[1]);
    let rsa = a.rsa_intermediate("spiffe://a.test");
    let mut below_rsa = rsa.row("56 below a CA with an RSA key", None, |_| {});
    below_rsa.chain.push(rsa.certificate);
    vec![
        forged,
        above,
        below_rsa,
        a.spliced("54 SHA-1", "signature_algorithm", |parts| parts.claim_algorithm(der::ECDSA_WITH_SHA1)),
        a.spliced("55 MD5", "signature_algorithm", |parts| parts.claim_algorithm(der::RSA_WITH_MD5)),
        a.spliced("64 two signature algorithms", "signature_algorithm", |parts| {
            parts.algorithm = der::ECDSA_WITH_SHA384.to_vec();
        }),
    ]
}

pub(super) fn constraints(authorities: &Authorities) -> Vec<Row> {
    let a = &authorities.a;
    let critical = |name, reason, oid: &[u64], content: &[u8]| {
        a.int(name, Some(reason), "spiffe://a.test", |ca: &mut CertificateParams| {
            ca.custom_extensions.push(extension(oid, content, true));
        })
    };
    // NameConstraints { [tag] { GeneralSubtree { uniformResourceIdentifier } } }
    let constrained = |name, tag, host: &[u8]| {
        let trees = der::wrap(tag, &der::sequence(6, host));
        critical(name, "name_constraint", NAME_CONSTRAINTS, &der::wrap(0x30, &trees))
    };
    vec![
        critical("60 unknown critical extension above", "unknown_critical_extension", UNKNOWN, &[5, 0]),
        constrained("76 URI constraint, satisfied: not supported", 0xa0, b"a.test"),
        constrained("77 URI constraint, violated", 0xa0, b"z.test"),
        constrained("78 URI excluded", 0xa1, b"a.test"),
        a.int("79 DNS constraint", None, "spiffe://a.test", |ca| {
            ca.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("a.test".to_owned())],
                excluded_subtrees: Vec::new(),
            });
        }),
    ]
}

fn self_signed() -> Row {
    let leaf = Leaf::new();
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.params.self_signed(&key).unwrap().der().clone();
    Row { name: "61 self-signed", chain: vec![certificate], key, expected: Some("untrusted") }
}

fn with_its_own_root() -> Row {
    let root = Ca::root("mine", "spiffe://a.test", |_| {});
    let mut row = root.row("61 with a root of its own", Some("untrusted"), |_| {});
    row.chain.push(root.certificate);
    row
}

/// Only the second of two CAs of one name has issued the leaf.
fn same_subject(a: &Ca) -> Row {
    let mut row = a.int("70 two intermediates of one name", None, "spiffe://a.test", |_| {});
    let other = a.intermediate("spiffe://a.test", |_| {});
    row.chain.insert(1, other.certificate);
    row
}

fn two_intermediates(a: &Ca, name: &'static str, path_length: Option<u8>, reversed: bool) -> Row {
    let upper = a.intermediate("spiffe://a.test", |ca| {
        ca.is_ca =
            IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    });
    let lower = upper.named_intermediate("lower", "spiffe://a.test", |_| {});
    let mut row = lower.row(name, None, |_| {});
    row.chain.extend([lower.certificate, upper.certificate]);
    if reversed {
        row.chain.swap(1, 2);
    }
    row
}

fn path_length(a: &Ca) -> Row {
    let row = two_intermediates(a, "80 path length violated", Some(0), false);
    Row { expected: Some("path_length"), ..row }
}

/// A good leaf with CAs behind it that its way to the anchor does not need.
fn more(a: &Ca, name: &'static str, cas: &[&Ca]) -> Row {
    let mut row = a.row(name, None, |_| {});
    row.chain.extend(cas.iter().map(|ca| ca.certificate.clone()));
    row
}

fn claims_foreign_leaf(a: &Ca) -> Row {
    let int = a.intermediate("spiffe://b.test", |_| {});
    let mut row = int.row("82 a's intermediate claims b", Some("untrusted"), |leaf| {
        leaf.uri("spiffe://b.test/ns/shop");
    });
    row.chain.push(int.certificate);
    row
}

fn junk_after_leaf(a: &Ca) -> Row {
    let other = a.row("", None, |leaf| leaf.uri("spiffe://a.test/other"));
    let mut row = a.row("91 another leaf in the chain", Some("issuer_not_ca"), |_| {});
    row.chain.extend(other.chain);
    row
}

fn too_large(a: &Ca) -> Row {
    a.int("93 a chain of 33 kilobytes", Some("chain_too_large"), "spiffe://a.test", |ca| {
        ca.custom_extensions.push(extension(UNKNOWN, &vec![5; 33 << 10], false));
    })
}
