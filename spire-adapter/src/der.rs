//! Reading concatenated DER certificates, as the Workload and Delegated Identity APIs send them, with bounds
//! on count and size before anything is kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::Error;

/// Bounds of one concatenated input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) certificates: usize,
    pub(crate) bytes: usize,
}

/// Splits `der` into its certificates; `object` names the input in errors.
pub(crate) fn split(der: &[u8], bounds: Bounds, object: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    if der.len() > bounds.bytes {
        return Err(Error::TooLarge { object: object.to_owned(), bytes: der.len(), limit: bounds.bytes });
    }
    let mut rest = der;
    let mut certificates = Vec::new();
    while !rest.is_empty() {
        if certificates.len() == bounds.certificates {
            return Err(Error::TooMany { object: object.to_owned(), limit: bounds.certificates });
        }
        let (next, parsed) = X509Certificate::from_der(rest).map_err(|error| Error::Certificate {
            object: object.to_owned(),
            index: certificates.len(),
            reason: error.to_string(),
        })?;
        certificates.push(CertificateDer::from(parsed.as_raw().to_vec()));
        rest = next;
    }
    if certificates.is_empty() {
        return Err(Error::Empty { object: object.to_owned() });
    }
    Ok(certificates)
}

/// Wall-clock time of a certificate's field; what lies before 1970 counts as 1970.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

/// Seconds since 1970 of a wall-clock time.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
