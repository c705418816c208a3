//! A panic in one line, whatever it is about.

use std::panic::{self, PanicHookInfo};
use std::process;

use super::{Exit, output, rlimits};

/// Longer messages are cut.
const MESSAGE_LEN_MAX: usize = 300;
/// Variables whose values never reach a log.
const SECRETS: [&str; 12] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// How tokio begins the panic of a runtime that can start no thread. What it has started by then waits
/// for good, and so would whoever unwinds over it.
const NO_THREAD: &str = "OS can't spawn worker thread: ";

tokio::task_local! {
    static TASK: &'static str;
}

/// The same task, by whose name a panic of it is told.
pub fn named<T>(name: &'static str, task: impl Future<Output = T>) -> impl Future<Output = T> {
    TASK.scope(name, task)
}

/// From now on a panic of any thread is a sentence that `say` gets, in one line and without secrets.
///
/// Where no thread is to be had, it says so and ends the process.
pub fn tell_panics(say: fn(&str)) {
    panic::set_hook(Box::new(move |info| match message(info).and_then(|text| text.strip_prefix(NO_THREAD)) {
        Some(why) => {
            say(&no_thread(why));
            output::flush_stderr(output::until());
            process::exit(i32::from(Exit::Defect as u8));
        }
        None => say(&sentence(info)),
    }));
}

/// Why there is no thread for something.
pub fn no_thread(why: impl std::fmt::Display) -> String {
    format!("cannot start a thread: {why}; {}: raise them, or end other processes", rlimits::on_threads())
}

fn message<'a>(info: &'a PanicHookInfo<'_>) -> Option<&'a str> {
    let payload = info.payload();
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

fn sentence(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let task = TASK.try_with(|name| format!(", task `{name}`")).unwrap_or_default();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    format!(
        "a defect of larder: panic in thread `{}`{task} at {place}: {}",
        thread.name().unwrap_or("without a name"),
        told(message(info).unwrap_or("no message"), &|name| std::env::var(name).ok())
    )
}

/// A message without line breaks, what follows a `?` in a URL, and the values of secret variables.
fn told(message: &str, env: &dyn Fn(&str) -> Option<String>) -> String {
    let mut message = message.to_owned();
    for value in SECRETS.into_iter().filter_map(env) {
        // As it is, and as `{:?}` shows it.
        let shown = format!("{value:?}");
        for value in [value.as_str(), shown.trim_matches('"'), value.trim()] {
            if !value.is_empty() {
                message = message.replace(value, "<hidden>");
            }
        }
    }
    let words = message.split(' ').map(|word| match (word.find("://"), word.find('?')) {
        (Some(_), Some(at)) => format!("{}?<query hidden>", &word[..at]),
        _ => word.to_owned(),
    });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_short_line_without_secrets() {
        let env = |name: &str| match name {
            "AWS_SECRET_ACCESS_KEY" => Some("S3CR\nT".to_owned()),
            "AWS_SESSION_TOKEN" => Some(String::new()),
            _ => None,
        };
        assert_eq!(
            told("key \"S3CR\\nT\" or S3CR\nT at\nhttps://h/k?X-Amz-Signature=1 ends", &env),
            "key \"<hidden>\" or <hidden> at https://h/k?<query hidden> ends"
        );
        assert_eq!(told(&"x".repeat(1000), &env).len(), MESSAGE_LEN_MAX);
    }
}
