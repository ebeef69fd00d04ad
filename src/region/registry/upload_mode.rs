//! The ways in which a blob can be sent to a registry, which of them is tried next after a refusal, and what has been learned about one
//! registry. Pure: requests are made in `upload.rs`.
//!
//! The OCI distribution specification 1.1 describes two ways ("Pushing a blob monolithically", "Pushing a blob in chunks"); the third is
//! what Docker does. Every registry takes one of them, and few take all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
/// The largest blob that is sent in one request at first, and the size of the chunks of those above, in bytes. What breaks off is sent
/// again from the chunk's beginning at worst, where the registry keeps what it has.
const CHUNK: u64 = 64 * MIB;
/// How many uploads in a row may break in one mode before the next one is tried.
const STRIKES: u8 = 2;

/// A way of sending a blob, after `POST` has begun the upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadMode {
    /// One `PUT` with the whole blob.
    Monolithic,
    /// One `PATCH` with the whole blob and without `Content-Range`, then a `PUT` without content.
    Streamed,
    /// A `PATCH` with `Content-Range` for every so many bytes, then a `PUT` with the rest.
    Chunked(u64),
}

/// The modes for blobs of at most [`CHUNK`] bytes, in the order in which they are tried.
const SMALL: [UploadMode; 5] = [
    UploadMode::Monolithic,
    UploadMode::Streamed,
    UploadMode::Chunked(16 * MIB),
    UploadMode::Chunked(4 * MIB),
    UploadMode::Chunked(MIB),
];
/// The modes for larger ones: chunks first, since only they can be resumed.
const LARGE: [UploadMode; 6] = [
    UploadMode::Chunked(CHUNK),
    UploadMode::Streamed,
    UploadMode::Monolithic,
    UploadMode::Chunked(16 * MIB),
    UploadMode::Chunked(4 * MIB),
    UploadMode::Chunked(MIB),
];

fn modes(size: u64) -> &'static [UploadMode] {
    if size <= CHUNK { &SMALL } else { &LARGE }
}

/// What a failed request says about the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lesson {
    /// The request had too many bytes.
    TooLarge,
    /// The registry does not take blobs in this mode.
    Unsupported,
    /// The upload was lost, or its bytes were not those that were sent. That may happen once; if it repeats, the mode is the reason.
    Broken,
}

impl Lesson {
    /// What the answer to a request with bytes of a blob, from `offset` on, says about the mode; nothing if it has other reasons.
    pub fn of(method: &Method, offset: u64, status: StatusCode) -> Option<Self> {
        let patch = method == Method::PATCH;
        match status.as_u16() {
            413 => Some(Self::TooLarge),
            405 | 406 | 411 | 415 | 501 => Some(Self::Unsupported),
            // Of an upload that has just been begun, nothing can be out of place: registries without chunks say so by these, too.
            416 if offset == 0 => Some(Self::Unsupported),
            400 | 404 if patch && offset == 0 => Some(Self::Unsupported),
            400 | 404 | 410 => Some(Self::Broken),
            500 if patch => Some(Self::Broken),
            _ => None,
        }
    }
}

/// What has been learned about a registry. The default supposes that it follows the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habits {
    small: UploadMode,
    large: UploadMode,
    /// Whether the `Range` of its answers says how many bytes of an upload it has.
    reports_offsets: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self { small: SMALL[0], large: LARGE[0], reports_offsets: true }
    }
}

impl Habits {
    /// What was learned earlier, as it was written down; the default if that is not understood.
    pub fn parse(text: &str) -> Self {
        let known = |habits: &Self| SMALL.contains(&habits.small) && LARGE.contains(&habits.large);
        serde_json::from_str(text).ok().filter(known).unwrap_or_default()
    }

    fn mode(&self, size: u64) -> UploadMode {
        if size <= CHUNK { self.small } else { self.large }
    }

    fn mode_mut(&mut self, size: u64) -> &mut UploadMode {
        if size <= CHUNK { &mut self.small } else { &mut self.large }
    }
}

/// What is known about a registry at this moment.
#[derive(Debug, Default)]
pub struct Learned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    habits: Habits,
    /// What of them an upload has succeeded with, and is written down.
    saved: Habits,
    /// How many uploads of small and large blobs in a row have broken.
    strikes: (u8, u8),
}

impl State {
    fn strikes(&mut self, size: u64) -> &mut u8 {
        if size <= CHUNK { &mut self.strikes.0 } else { &mut self.strikes.1 }
    }
}

impl Learned {
    /// The state is never half-changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what was learned earlier.
    pub fn load(&self, habits: Habits) {
        *self.state() = State { habits, saved: habits, strikes: (0, 0) };
    }

    /// The mode for a blob of that size.
    pub fn mode(&self, size: u64) -> UploadMode {
        self.state().habits.mode(size)
    }

    /// Whether the registry's `Range` is to be believed.
    pub fn reports_offsets(&self) -> bool {
        self.state().habits.reports_offsets
    }

    /// Records that its `Range` is not what was sent.
    pub fn misreports_offsets(&self) {
        self.state().habits.reports_offsets = false;
    }

    /// Takes a lesson from a request with `sent` bytes of a blob of `size` bytes that was sent in `mode`. Returns whether the blob is to be
    /// sent in another mode. Where none is left, all of them may be tried again later: the reason was another one.
    pub fn learn(&self, size: u64, mode: UploadMode, lesson: Lesson, sent: u64) -> bool {
        let mut state = self.state();
        // Another blob has taught the same before.
        if state.habits.mode(size) != mode {
            return true;
        }
        if lesson == Lesson::Broken {
            let strikes = state.strikes(size);
            *strikes += 1;
            if *strikes < STRIKES {
                return false;
            }
        }
        *state.strikes(size) = 0;
        let next = next(modes(size), mode, lesson, sent);
        *state.habits.mode_mut(size) = next.unwrap_or(modes(size)[0]);
        next.is_some()
    }

    /// Records that a blob has arrived. Returns what is to be written down about the registry, if that is not known yet.
    pub fn succeeded(&self, size: u64, mode: UploadMode) -> Option<String> {
        let mut state = self.state();
        if state.habits.mode(size) != mode {
            return None;
        }
        *state.strikes(size) = 0;
        let mut learned = Habits { reports_offsets: state.habits.reports_offsets, ..state.saved };
        *learned.mode_mut(size) = mode;
        if learned == state.saved {
            return None;
        }
        state.saved = learned;
        serde_json::to_string(&learned).ok()
    }
}

/// The mode that comes after one which a lesson speaks against.
fn next(modes: &[UploadMode], mode: UploadMode, lesson: Lesson, sent: u64) -> Option<UploadMode> {
    let place = modes.iter().position(|other| *other == mode)?;
    let is_chunked = matches!(mode, UploadMode::Chunked(_));
    let fits = |next: &&UploadMode| match next {
        UploadMode::Chunked(chunk) if lesson == Lesson::TooLarge => *chunk < sent,
        UploadMode::Chunked(_) => !is_chunked,
        _ => lesson != Lesson::TooLarge,
    };
    modes[place + 1..].iter().find(fits).copied()
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use proptest::prelude::*;

    use super::{CHUNK, Habits, Learned, Lesson, MIB, UploadMode};

    const BLOB: u64 = CHUNK + 6 * MIB;

    #[test]
    fn refusals_lead_from_mode_to_mode() {
        let learned = Learned::default();
        for (lesson, sent, next) in [
            (Lesson::Unsupported, CHUNK, Some(UploadMode::Streamed)),
            (Lesson::Unsupported, BLOB, Some(UploadMode::Monolithic)),
            (Lesson::TooLarge, BLOB, Some(UploadMode::Chunked(16 * MIB))),
            (Lesson::TooLarge, 16 * MIB, Some(UploadMode::Chunked(4 * MIB))),
            (Lesson::Unsupported, 4 * MIB, None),
        ] {
            let mode = learned.mode(BLOB);
            assert_eq!(learned.learn(BLOB, mode, lesson, sent), next.is_some(), "{mode:?}");
            // After the last, the reason was another one.
            assert_eq!(learned.mode(BLOB), next.unwrap_or(UploadMode::Chunked(CHUNK)), "{mode:?}");
        }
        assert_eq!(learned.mode(CHUNK), UploadMode::Monolithic, "small blobs are sent as before");
    }

    #[test]
    fn a_quota_teaches_nothing_about_small_blobs() {
        let learned = Learned::default();
        assert!(!learned.learn(1_000, UploadMode::Monolithic, Lesson::TooLarge, 1_000));
        assert_eq!(learned.mode(1_000), UploadMode::Monolithic);
    }

    #[test]
    fn one_upload_that_breaks_is_no_reason_and_two_in_a_row_are() {
        let learned = Learned::default();
        let chunked = learned.mode(BLOB);
        assert!(!learned.learn(BLOB, chunked, Lesson::Broken, CHUNK));
        assert_eq!(learned.succeeded(BLOB, chunked), None);
        assert!(!learned.learn(BLOB, chunked, Lesson::Broken, CHUNK));
        assert!(learned.learn(BLOB, chunked, Lesson::Broken, CHUNK));
        assert_eq!(learned.mode(BLOB), UploadMode::Streamed);
        assert!(learned.learn(BLOB, chunked, Lesson::Broken, CHUNK), "it was sent before that was known");
        assert_eq!(learned.mode(BLOB), UploadMode::Streamed);
    }

    #[test]
    fn what_has_succeeded_is_written_down_once() {
        let learned = Learned::default();
        assert!(learned.learn(BLOB, UploadMode::Chunked(CHUNK), Lesson::Unsupported, CHUNK));
        learned.misreports_offsets();
        assert_eq!(learned.succeeded(BLOB, UploadMode::Chunked(CHUNK)), None, "it was begun before");
        let written = learned.succeeded(BLOB, UploadMode::Streamed).expect("it is new");
        assert_eq!(learned.succeeded(BLOB, UploadMode::Streamed), None);
        let later = Learned::default();
        later.load(Habits::parse(&written));
        assert!(later.mode(BLOB) == UploadMode::Streamed && !later.reports_offsets());
        assert_eq!(
            Habits::parse(r#"{"small":{"chunked":0},"large":"streamed","reports_offsets":true}"#),
            Habits::default()
        );
    }

    #[test]
    fn answers_teach_what_they_are_about() {
        for (method, offset, status, lesson) in [
            (Method::PATCH, 0, 405, Some(Lesson::Unsupported)),
            (Method::PATCH, 0, 404, Some(Lesson::Unsupported)),
            (Method::PATCH, 0, 416, Some(Lesson::Unsupported)),
            (Method::PATCH, CHUNK, 404, Some(Lesson::Broken)),
            (Method::PATCH, 0, 410, Some(Lesson::Broken)),
            (Method::PATCH, CHUNK, 416, None),
            (Method::PATCH, CHUNK, 413, Some(Lesson::TooLarge)),
            (Method::PUT, 0, 400, Some(Lesson::Broken)),
            (Method::PUT, 0, 411, Some(Lesson::Unsupported)),
            (Method::PUT, 0, 403, None),
            (Method::PUT, 0, 500, None),
            (Method::PATCH, 0, 503, None),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(Lesson::of(&method, offset, status), lesson, "{method} {offset} {status}");
        }
    }

    proptest! {
        /// Whatever a registry answers, a blob is not sent without end.
        #[test]
        fn the_modes_end(size in 1..4 * CHUNK, lessons in prop::collection::vec(0..2u8, 16)) {
            let learned = Learned::default();
            let tries = lessons.iter().take_while(|lesson| {
                let mode = learned.mode(size);
                let sent = if let UploadMode::Chunked(chunk) = mode { chunk.min(size) } else { size };
                let lesson = if **lesson == 0 { Lesson::TooLarge } else { Lesson::Unsupported };
                learned.learn(size, mode, lesson, sent)
            });
            prop_assert!(tries.count() < 6);
        }
    }
}
