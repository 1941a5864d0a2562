//! The file format of captures, as `tcpdump` writes it on the machine that reads it.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::Frame;

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// The frames of a capture. A last record that is still being written is left out; a frame that was cut
/// short is an error, since it could hide what is looked for.
pub(super) fn parse(file: &[u8]) -> Result<Vec<Frame>> {
    if file.is_empty() {
        return Ok(Vec::new());
    }
    let Some((header, mut rest)) = file.split_at_checked(FILE_HEADER) else { return Ok(Vec::new()) };
    let unit = match word(header, 0)? {
        MICROSECONDS => 1000,
        NANOSECONDS => 1,
        magic => bail!("no capture of this machine: it begins with {magic:#x}"),
    };
    if word(header, 20)? != ETHERNET {
        bail!("no capture of Ethernet frames");
    }
    let mut frames = Vec::new();
    while let Some((record, after)) = rest.split_at_checked(RECORD_HEADER) {
        let (captured, original) = (word(record, 8)?, word(record, 12)?);
        if captured < original {
            bail!("a frame of {original} bytes was cut to {captured}");
        }
        let Some((bytes, after)) = after.split_at_checked(usize::try_from(captured)?) else { break };
        let since = Duration::new(word(record, 0)?.into(), word(record, 4)? * unit);
        frames.push(Frame { time: SystemTime::UNIX_EPOCH + since, bytes: bytes.to_owned() });
        rest = after;
    }
    Ok(frames)
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..at + 4).context("capture cut short")?;
    Ok(u32::from_ne_bytes(four.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn capture(cut: bool) -> Vec<u8> {
        let mut file = words(&[MICROSECONDS, 0x0004_0002, 0, 0, 262_144, ETHERNET]);
        file.extend(words(&[7, 500_000, 3, if cut { 4 } else { 3 }]));
        file.extend(b"abc");
        file
    }

    #[test]
    fn a_record_still_being_written_is_left_out() {
        let file = capture(false);
        for length in 0..file.len() {
            assert_eq!(parse(&file[..length]).unwrap(), []);
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(7500);
        assert_eq!(parse(&file).unwrap(), [Frame { time, bytes: b"abc".to_vec() }]);
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        assert!(parse(&capture(true)).unwrap_err().to_string().contains("cut to 3"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(parse(&[0; 64]).is_err());
    }
}
