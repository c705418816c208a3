//! A panic in one line, whatever it is about.

use std::panic::{self, PanicHookInfo};

/// Longer messages are cut.
const MESSAGE_LEN_MAX: usize = 300;
/// Variables whose values never reach a log.
const SECRETS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "HTTPS_PROXY",
];

tokio::task_local! {
    static TASK: &'static str;
}

/// The same task, by whose name a panic of it is told.
pub fn named<T>(name: &'static str, task: impl Future<Output = T>) -> impl Future<Output = T> {
    TASK.scope(name, task)
}

/// From now on a panic of any thread is a sentence that `say` gets, in one line and without secrets.
pub fn tell_panics(say: fn(&str)) {
    panic::set_hook(Box::new(move |info| say(&sentence(info))));
}

fn sentence(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let task = TASK.try_with(|name| format!(", task `{name}`")).unwrap_or_default();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let message =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!(
        "a defect of larder: panic in thread `{}`{task} at {place}: {}",
        thread.name().unwrap_or("without a name"),
        told(message.unwrap_or("no message"), &|name| std::env::var(name).ok())
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
