//! Rows that differ in the leaf.

use rcgen::{
    BasicConstraints, DistinguishedName, ExtendedKeyUsagePurpose as E, IsCa, KeyUsagePurpose as K,
    PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, SanType,
};

use super::making::{at, long_id};
use super::{Authorities, Row, der};

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];
/// `[6]`, a URI among a SAN's names.
const URI: u8 = 6;

pub(super) fn accepted(authorities: &Authorities) -> Vec<Row> {
    let a = &authorities.a;
    vec![
        a.row("00 good", None, |_| {}),
        authorities.b.row("01 good of a federated domain", None, |leaf| leaf.uri("spiffe://b.test/ns/shop")),
        a.row("02 no EKU", None, |leaf| leaf.params.extended_key_usages.clear()),
        a.row("03 names of other kinds beside the URI", None, |leaf| {
            leaf.params.subject_alt_names.extend([
                SanType::DnsName("web.test".try_into().unwrap()),
                SanType::Rfc822Name("web@a.test".try_into().unwrap()),
                SanType::IpAddress([192, 0, 2, 1].into()),
            ]);
        }),
        a.row("28 EKU with another purpose besides", None, |leaf| {
            leaf.params.extended_key_usages.push(E::EmailProtection);
        }),
        a.row("33 a name of three dots", None, |leaf| leaf.uri("spiffe://a.test/ns/...")),
        a.row("45 an ID of 2048 bytes", None, |leaf| leaf.uri(&long_id(2048))),
        a.row("56 RSA of 2048 bits", None, |leaf| leaf.algorithm = &PKCS_RSA_SHA256),
        a.row("57 P-384", None, |leaf| leaf.algorithm = &PKCS_ECDSA_P384_SHA384),
        a.row("58 empty subject, critical SAN", None, |leaf| {
            // rcgen makes the SAN critical then, as RFC 5280 asks.
            leaf.params.distinguished_name = DistinguishedName::new();
        }),
        a.row("60 unknown extension, not critical", None, |leaf| leaf.extension(UNKNOWN, &[5, 0], false)),
    ]
}

pub(super) fn names(authorities: &Authorities) -> Vec<Row> {
    let a = &authorities.a;
    let id = |name, uri: &str, reason| a.row(name, Some(reason), |leaf| leaf.uri(uri));
    let invalid = |name, uri| id(name, uri, "spiffe_id_invalid");
    let unknown = |name, uri| id(name, uri, "unknown_trust_domain");
    // With a SAN of these bytes.
    let san = |name, reason, names: &[u8]| {
        a.row(name, Some(reason), |leaf| {
            leaf.params.subject_alt_names.clear();
            leaf.extension(SUBJECT_ALT_NAME, names, false);
        })
    };
    let raw = |name, reason, uri: &[u8]| san(name, reason, &der::sequence(URI, uri));
    vec![
        unknown("11 unknown trust domain", "spiffe://c.test/ns/shop"),
        unknown("11 a domain that is an address", "spiffe://127.0.0.1/ns/shop"),
        unknown("11 a domain in punycode", "spiffe://xn--a-0ga.test/ns/shop"),
        unknown("11 a domain of 255 bytes", &format!("spiffe://{}/ns/shop", "a".repeat(255))),
        a.row("13 two URIs", Some("several_uri_sans"), |leaf| leaf.add_uri("spiffe://a.test/other")),
        a.row("13 the same URI twice", Some("several_uri_sans"), |leaf| {
            leaf.add_uri("spiffe://a.test/ns/shop");
        }),
        a.row("14 two URIs, one https", Some("several_uri_sans"), |leaf| leaf.add_uri("https://a.test/")),
        a.row("15 no URI", Some("no_uri_san"), |leaf| {
            leaf.params.subject_alt_names = vec![SanType::DnsName("a.test".try_into().unwrap())];
        }),
        a.row("16 no SAN", Some("no_uri_san"), |leaf| leaf.params.subject_alt_names.clear()),
        san("16 SAN without a name", "no_uri_san", &der::wrap(0x30, &[])),
        invalid("17 https URI", "https://a.test/ns/shop"),
        invalid("17 scheme without authority", "spiffe:a.test/ns/shop"),
        invalid("17 one slash", "spiffe:/a.test/ns/shop"),
        invalid("17 empty domain", "spiffe:///ns/shop"),
        id("30 root path", "spiffe://a.test", "spiffe_id_without_path"),
        invalid("30 a slash alone", "spiffe://a.test/"),
        invalid("31 trailing slash", "spiffe://a.test/ns/"),
        invalid("32 dot dot", "spiffe://a.test/ns/../x"),
        invalid("33 dot", "spiffe://a.test/./x"),
        invalid("34 empty segment", "spiffe://a.test//x"),
        invalid("35 percent", "spiffe://a.test/n%73"),
        invalid("35 percent in the domain", "spiffe://a%2Etest/ns/shop"),
        id("36 upper case domain", "spiffe://A.test/ns/shop", "spiffe_id_not_canonical"),
        invalid("37 port", "spiffe://a.test:80/ns/shop"),
        invalid("37 an address in brackets", "spiffe://[::1]/ns/shop"),
        invalid("38 user", "spiffe://u@a.test/ns/shop"),
        invalid("39 query", "spiffe://a.test/ns/shop?x=1"),
        invalid("40 fragment", "spiffe://a.test/ns/shop#x"),
        id("41 upper case scheme", "SPIFFE://a.test/ns/shop", "spiffe_id_not_canonical"),
        unknown("42 domain as prefix", "spiffe://a.test.evil/ns/shop"),
        unknown("42 domain as suffix", "spiffe://evil.a.test/ns/shop"),
        raw("43 not ASCII", "spiffe_id_invalid", b"spiffe://a.test/\xc3\xa4"),
        raw("43 domain not ASCII", "spiffe_id_invalid", b"spiffe://\xc3\xa4.test/ns/shop"),
        raw("43 not even UTF-8", "malformed", b"spiffe://a.test/\xff"),
        raw("43 NUL in the ID", "spiffe_id_invalid", b"spiffe://a.test/ns\0/shop"),
        raw("43 NUL after the ID", "spiffe_id_invalid", b"spiffe://a.test/ns/shop\0"),
        raw("43 NUL after the domain", "spiffe_id_invalid", b"spiffe://a.test\0.evil/ns/shop"),
        raw("43 blank after the ID", "spiffe_id_invalid", b"spiffe://a.test/ns/shop "),
        raw("43 line end after the ID", "spiffe_id_invalid", b"spiffe://a.test/ns/shop\n"),
        san(
            "43 a name of unknown kind beside the URI",
            "malformed",
            &der::wrap(0x30, &[der::wrap(0x86, b"spiffe://a.test/ns/shop"), der::wrap(0x8f, b"x")].concat()),
        ),
        a.row("44 an ID of 2049 bytes", Some("spiffe_id_too_long"), |leaf| leaf.uri(&long_id(2049))),
        invalid("46 domain of 256 bytes", &format!("spiffe://{}/x", "a".repeat(256))),
        a.row("59 empty subject, SAN not critical", Some("san_not_critical"), |leaf| {
            leaf.params.distinguished_name = DistinguishedName::new();
            leaf.params.subject_alt_names.clear();
            leaf.extension(SUBJECT_ALT_NAME, &der::sequence(URI, b"spiffe://a.test/ns/shop"), false);
        }),
        id("90 another identity", "spiffe://a.test/elsewhere", "unexpected_peer"),
    ]
}

pub(super) fn usages(authorities: &Authorities) -> Vec<Row> {
    let a = &authorities.a;
    let key_usage = |name, reason, usages: &'static [K]| {
        a.row(name, Some(reason), |leaf| leaf.params.key_usages = usages.to_vec())
    };
    let extended = |name, usages: &'static [E]| {
        a.row(name, Some("extended_key_usage_incomplete"), |leaf| {
            leaf.params.extended_key_usages = usages.to_vec();
        })
    };
    vec![
        a.row("04 a CA as leaf", Some("spiffe_id_without_path"), |leaf| {
            leaf.uri("spiffe://a.test");
            leaf.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            leaf.params.key_usages = vec![K::KeyCertSign, K::CrlSign];
        }),
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
            leaf.extension(UNKNOWN, &[5, 0], true);
        }),
        a.row("63 an extension twice", Some("duplicate_extension"), |leaf| {
            leaf.extension(KEY_USAGE, &[3, 2, 7, 0x80], true);
        }),
        a.row("63 two SANs", Some("duplicate_extension"), |leaf| {
            leaf.extension(SUBJECT_ALT_NAME, &der::sequence(URI, b"spiffe://a.test/other"), false);
        }),
    ]
}

pub(super) fn times_and_keys(authorities: &Authorities) -> Vec<Row> {
    let a = &authorities.a;
    let times = |name, reason, from: i64, to: i64| {
        a.row(name, reason, move |leaf| {
            leaf.params.not_before = at(from).into();
            leaf.params.not_after = at(to).into();
        })
    };
    let refused_key =
        |name, info: &[u8]| a.spliced(name, "key_type_not_allowed", |parts| parts.public_key(info.to_vec()));
    let day = 86_400;
    vec![
        times("50 expired", Some("expired"), -2 * day, -10),
        times("51 not yet", Some("not_yet_valid"), 3600, 2 * day),
        times("51 ahead by less than the tolerance", None, 50, day),
        times("52 ends before it starts", Some("expired"), 30, -30),
        times("53 far future", Some("lifetime_too_long"), -10, 8 * day),
        times("53 seven days", None, -10, 7 * day - 5),
        refused_key("56 RSA of 512 bits", &der::rsa_key(512)),
        refused_key("56 RSA of 1024 bits", &der::rsa_key(1024)),
        refused_key("56 RSA of 16384 bits", &der::rsa_key(16384)),
        a.row("57 Ed25519", Some("key_type_not_allowed"), |leaf| leaf.algorithm = &PKCS_ED25519),
        a.row("57 P-521", Some("key_type_not_allowed"), |leaf| leaf.algorithm = &PKCS_ECDSA_P521_SHA512),
        refused_key("57 secp256k1", &der::secp256k1_key()),
    ]
}
