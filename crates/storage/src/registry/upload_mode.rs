//! Upload modes of blobs: the choice of the mode after a rejection, and the learned behavior of a registry. This module
//! does no I/O; `upload.rs` sends the requests.
//!
//! The OCI distribution specification 1.1 describes two modes ("Pushing a blob monolithically", "Pushing a blob in
//! chunks"); the third comes from Docker. Every registry accepts one of them, and few accept all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
/// Maximum size of a blob that is initially sent in one request, and the chunk size for larger blobs, in bytes. If the
/// registry keeps the earlier chunks, an interrupted transfer resumes no earlier than the start of the current chunk.
const CHUNK: u64 = 64 * MIB;
/// Number of consecutive broken uploads after which the next mode is tried.
const STRIKES: u8 = 2;

/// A mode of sending a blob, after `POST` has started the upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadMode {
    /// One `PUT` with the whole blob.
    Monolithic,
    /// One `PATCH` with the whole blob and without `Content-Range`, then a `PUT` without content.
    Streamed,
    /// A `PATCH` with `Content-Range` for every chunk of this many bytes, then a `PUT` with the rest.
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
/// The modes for larger blobs. Chunks are first, because no other mode can be resumed.
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

/// The conclusion about an upload mode from a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lesson {
    /// The request had too many bytes.
    TooLarge,
    /// The registry does not accept blobs in this mode.
    Unsupported,
    /// The registry lost the upload, or received bytes that differ from those sent. A single case may be an accident;
    /// repeated cases count against the mode.
    Broken,
}

impl Lesson {
    /// Returns the conclusion from the status of a request whose bytes start at `offset`, or `None` if the status says
    /// nothing about the mode.
    pub fn of(method: &Method, offset: u64, status: StatusCode) -> Option<Self> {
        let patch = method == Method::PATCH;
        match status.as_u16() {
            413 => Some(Self::TooLarge),
            405 | 406 | 411 | 415 | 501 => Some(Self::Unsupported),
            // An upload that was just started can't be out of order. Registries that do not support chunks also respond
            // with these statuses.
            416 if offset == 0 => Some(Self::Unsupported),
            400 | 404 if patch && offset == 0 => Some(Self::Unsupported),
            400 | 404 | 410 => Some(Self::Broken),
            500 if patch => Some(Self::Broken),
            _ => None,
        }
    }
}

/// Behavior of a registry that was learned from its responses. The default assumes that the registry follows the
/// specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habits {
    small: UploadMode,
    large: UploadMode,
    /// Whether the `Range` of the registry's responses states the number of received bytes.
    reports_offsets: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self { small: SMALL[0], large: LARGE[0], reports_offsets: true }
    }
}

impl Habits {
    /// Parses stored habits. Returns the default if they are invalid.
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

/// The current knowledge about a registry.
#[derive(Debug, Default)]
pub struct Learned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    habits: Habits,
    /// The habits that an upload has confirmed, as they are stored.
    saved: Habits,
    /// Number of consecutive broken uploads of small and of large blobs.
    strikes: (u8, u8),
}

impl State {
    fn strikes(&mut self, size: u64) -> &mut u8 {
        if size <= CHUNK { &mut self.strikes.0 } else { &mut self.strikes.1 }
    }
}

impl Learned {
    /// Locks the state. A panic leaves no partial change behind.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the state with stored habits.
    pub fn load(&self, habits: Habits) {
        *self.state() = State { habits, saved: habits, strikes: (0, 0) };
    }

    /// Returns the mode for a blob of `size` bytes.
    pub fn mode(&self, size: u64) -> UploadMode {
        self.state().habits.mode(size)
    }

    /// Returns whether the registry's `Range` is reliable.
    pub fn reports_offsets(&self) -> bool {
        self.state().habits.reports_offsets
    }

    /// Records that the registry's `Range` differs from the bytes sent.
    pub fn misreports_offsets(&self) {
        self.state().habits.reports_offsets = false;
    }

    /// Applies a lesson from a request with `sent` bytes of a blob of `size` bytes in `mode`. Returns whether to send
    /// the blob in another mode. If no mode is left, starts again with the first mode, because the failures then had
    /// another reason.
    pub fn learn(&self, size: u64, mode: UploadMode, lesson: Lesson, sent: u64) -> bool {
        let mut state = self.state();
        // The same lesson has already been learned from another blob.
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

    /// Records a successful upload. Returns the habits to store, if they have changed.
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

/// Returns the mode to try after a lesson.
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
            // After the last mode, the first one is used again.
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
        /// An upload ends after a finite number of attempts, whatever a registry responds.
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
