//! Where text goes: data to stdout, everything else to stderr, above the bars while there are some.
//!
//! What cannot be written to stderr is lost. What cannot be written to stdout is told at the end, and
//! in the exit code: by then everything that was asked for is done.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};

use crate::report::{Exit, Failure, output, text};

/// How to speak to whoever started us.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    /// JSON on stdout.
    pub json: bool,
    /// Only data and errors.
    pub quiet: bool,
}

impl Console {
    /// What a listing shows, as it is. A reader that has seen enough (`larder ls | head`) is no error.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn data(self, text: &str) {
        to_stdout(true, || output::stdout(text.as_bytes()));
    }

    /// The same as one JSON object on a line of its own.
    pub fn row(self, value: &serde_json::Value) {
        self.data(&format!("{value}\n"));
    }

    /// How somebody else's printing of a listing went.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn printed(self, printed: io::Result<()>) {
        if let Err(error) = printed.and_then(|()| io::stdout().flush()) {
            note_unheard(&mut locked(&UNHEARD), error, true);
        }
    }

    /// What is wrong with a command line.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn usage(self, text: &clap::builder::StyledStr) {
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::stderr().is_terminal();
        let text = if color { text.ansi().to_string() } else { text.to_string() };
        output::stderr(text.as_bytes());
    }

    /// What happens, as one JSON object on a line of its own.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn event(self, value: &serde_json::Value) {
        to_stdout(false, || output::event(format!("{value}\n").as_bytes()));
    }

    /// The same for how far something is: where the reader is slow it is left out.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn passing_event(self, value: &serde_json::Value) {
        to_stdout(false, || output::passing_event(format!("{value}\n").as_bytes()));
    }

    /// Whether what goes to stdout still arrives somewhere.
    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    pub fn is_heard(self) -> bool {
        locked(&UNHEARD).is_none()
    }

    /// How the process ends where `exit` is how the work went. Output that was lost is an error, but
    /// none that hides another. By now the store is let go: readers get their time.
    pub fn end(self, exit: Exit) -> Exit {
        let until = output::until();
        to_stdout(false, || output::flush_stdout(until));
        let exit = self.with_stdout(exit);
        output::flush_stderr(until);
        exit
    }

    fn with_stdout(self, exit: Exit) -> Exit {
        let Some(Unheard::Lost(error)) = &*locked(&UNHEARD) else { return exit };
        let done = if exit == Exit::Done { ", though what was asked for is done" } else { "" };
        self.say(&Failure::new(Exit::Disk, format!("stdout cannot be written{done}: {error}")));
        if exit == Exit::Done { Exit::Disk } else { exit }
    }

    /// A line about what happens.
    pub fn note(self, line: &str) {
        if !self.quiet {
            above_bars(|| output::stderr(format!("{}\n", plain(line)).as_bytes()));
        }
    }

    /// The same for how far something is: where the reader is slow it is left out.
    pub fn passing_note(self, line: &str) {
        if !self.quiet {
            above_bars(|| output::passing(format!("{}\n", plain(line)).as_bytes()));
        }
    }

    /// What happened, unless events carry it.
    pub fn result(self, lines: &str) {
        if !self.json {
            self.note(lines);
        }
    }

    /// An error, in words or as an event.
    pub fn failure(self, failure: &Failure) {
        if self.json {
            self.event(&serde_json::json!({
                "event": "error",
                "message": failure.message,
                "hint": failure.hint,
                "exit_code": failure.exit as u8,
            }));
        }
        self.say(failure);
    }

    #[expect(clippy::unused_self, reason = "said through the same door as everything else")]
    fn say(self, failure: &Failure) {
        let hint = failure.hint.as_ref().map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
        above_bars(|| output::stderr(plain(&format!("error: {}\n{hint}", failure.message)).as_bytes()));
    }
}

/// Text that does nothing to a terminal but stand on it, whatever an origin called its objects.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "?")
}

/// Why nothing more goes to stdout.
enum Unheard {
    /// The reader of a listing has seen enough.
    Enough,
    /// It cannot be written.
    Lost(io::Error),
}

static UNHEARD: Mutex<Option<Unheard>> = Mutex::new(None);

/// After the first failure nothing more is written: half a line is half a line, and no other begins in
/// its middle.
fn to_stdout(may_end: bool, write: impl FnOnce() -> io::Result<()>) {
    let mut unheard = locked(&UNHEARD);
    if unheard.is_some() {
        return;
    }
    if let Err(error) = write() {
        note_unheard(&mut unheard, error, may_end);
    }
}

fn note_unheard(unheard: &mut Option<Unheard>, error: io::Error, may_end: bool) {
    let enough = may_end && error.kind() == io::ErrorKind::BrokenPipe;
    *unheard = Some(if enough { Unheard::Enough } else { Unheard::Lost(error) });
}

/// The log's way to stderr.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above_bars(|| output::command_log_line(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bars at the bottom of the screen. One for the process, because the log and a second Ctrl-C
/// come from anywhere.
static SHOWN: Mutex<Option<Shown>> = Mutex::new(None);

struct Shown {
    screen: MultiProgress,
    headline: ProgressBar,
    bars: Vec<ProgressBar>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn above_bars<T>(print: impl FnOnce() -> T) -> T {
    match &*locked(&SHOWN) {
        Some(shown) => shown.screen.suspend(print),
        None => print(),
    }
}

/// Takes the bars off the screen.
pub fn clear_bars() {
    clear(locked(&SHOWN));
}

/// The same for whoever must not wait.
pub fn clear_bars_now() {
    if let Ok(shown) = SHOWN.try_lock() {
        clear(shown);
    }
}

fn clear(mut shown: MutexGuard<'_, Option<Shown>>) {
    if let Some(shown) = shown.take() {
        let _ = shown.screen.clear();
        // A bar draws once more when it is dropped.
        shown.screen.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// A share of a whole, and what it is.
pub struct Bar {
    pub done: u64,
    pub size: u64,
    pub text: String,
}

/// Bars at the bottom of the screen; gone with the value, so that what follows starts on a clean
/// line.
pub struct Bars(());

impl Bars {
    /// `None` where none can be drawn: no terminal, or one that cannot move its cursor.
    pub fn new(times_per_second: u8) -> Option<Self> {
        let can_move = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        if !io::stderr().is_terminal() || !can_move {
            return None;
        }
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(Terminal::default()), times_per_second);
        let screen = MultiProgress::with_draw_target(target);
        let headline = screen.add(ProgressBar::no_length().with_style(style("{wide_msg}")));
        *locked(&SHOWN) = Some(Shown { screen, headline, bars: Vec::new() });
        Some(Self(()))
    }

    /// Shows these in place of those before.
    #[expect(clippy::unused_self, reason = "who has it is who draws")]
    pub fn show(&self, headline: String, bars: Vec<Bar>) {
        let mut shown = locked(&SHOWN);
        let Some(Shown { screen, headline: first, bars: rows }) = &mut *shown else { return };
        // Every change asks for a drawing, and the first one of a period gets it: with all bars as
        // they were left last time, so no bar is seen under the name of another.
        first.set_message(headline);
        rows.drain(bars.len().min(rows.len())..).for_each(|row| screen.remove(&row));
        while rows.len() < bars.len() {
            rows.push(screen.add(ProgressBar::new(1).with_style(style("[{bar:20}] {floor:>3} %  {wide_msg}"))));
        }
        for (row, bar) in rows.iter().zip(bars) {
            row.update(|state| {
                state.set_len(bar.size.max(1));
                state.set_pos(bar.done);
            });
            row.set_message(bar.text);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        clear_bars();
    }
}

/// `floor` is the percentage; indicatif's own is rounded, and 100 before the end.
fn style(template: &str) -> ProgressStyle {
    let floor = |state: &ProgressState, to: &mut dyn fmt::Write| {
        let _ = write!(to, "{}", text::percent(state.pos(), state.len().unwrap_or(0)));
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("floor", floor).progress_chars("=> ")
}

/// Stderr for indicatif, which leaves the cursor at the right edge of the last bar: there the `^C`
/// that a terminal echoes would wrap, and leave a line behind. Here the cursor waits at the left.
/// What is drawn is written at once, so that no other program's output comes between; a terminal
/// that went away is no error.
#[derive(Debug, Default)]
struct Terminal {
    drawing: Mutex<String>,
}

impl Terminal {
    fn size() -> (u16, u16) {
        let told = rustix::termios::tcgetwinsize(io::stderr()).ok();
        let told = told.filter(|size| size.ws_row > 0 && size.ws_col > 0);
        told.map_or((24, 80), |size| (size.ws_row, size.ws_col))
    }

    fn moved(&self, by: usize, direction: char) -> io::Result<()> {
        if by == 0 { Ok(()) } else { self.write_str(&format!("\x1b[{by}{direction}")) }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        Self::size().1
    }

    fn height(&self) -> u16 {
        Self::size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        // Only ever to lines that are there, so nothing scrolls.
        self.write_str(&"\n".repeat(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'D')
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.write_str(&format!("{line}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        locked(&self.drawing).push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let drawing = std::mem::take(&mut *locked(&self.drawing)) + "\r";
        output::passing(drawing.as_bytes());
        Ok(())
    }
}
