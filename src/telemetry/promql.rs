//! As much of Prometheus' query language as it takes to say which series a dashboard's expressions read. Test code.

use std::collections::{BTreeMap, BTreeSet};

/// One place in an expression that reads series.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    /// The name of the series.
    pub metric: String,
    /// Labels in its braces, and the words each is compared with; none where a variable decides.
    pub matched: BTreeMap<String, Vec<String>>,
    /// Labels of the aggregations around it.
    pub grouped: BTreeSet<String>,
    /// Whether it reads a range of time, as `rate` wants it.
    pub ranged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Range,
    Number,
    Sign(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(&c) = rest.peek() {
        if c.is_ascii_alphabetic() || c == '_' || c == ':' {
            let mut word = String::new();
            while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')) {
                word.push(c);
            }
            tokens.push(Token::Word(word));
            continue;
        }
        rest.next();
        match c {
            ' ' | '\n' | '\t' => {}
            '"' | '\'' | '`' => {
                let mut words = String::new();
                loop {
                    match rest.next() {
                        Some('\\') if c != '`' => words.extend(rest.next()),
                        Some(end) if end == c => break,
                        Some(other) => words.push(other),
                        None => return Err(format!("a string without an end in `{text}`")),
                    }
                }
                tokens.push(Token::Text(words));
            }
            '[' => {
                if !rest.by_ref().any(|c| c == ']') {
                    return Err(format!("a range without an end in `{text}`"));
                }
                tokens.push(Token::Range);
            }
            // A duration or a number such as 5m or 1e9, or a variable in the place of one.
            '0'..='9' | '.' | '$' => {
                while rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_')).is_some() {}
                tokens.push(Token::Number);
            }
            '(' | ')' | '{' | '}' | ',' | '+' | '-' | '*' | '/' | '%' | '^' | '=' | '!' | '<' | '>' | '~' | '@' => {
                tokens.push(Token::Sign(c));
            }
            _ => return Err(format!("`{c}` in `{text}`")),
        }
    }
    Ok(tokens)
}

/// `(a, b)` at the start of what is left.
fn label_list(tokens: &mut &[Token]) -> Result<BTreeSet<String>, String> {
    let Some((Token::Sign('('), mut rest)) = tokens.split_first() else {
        return Err("labels in parentheses are missing".to_owned());
    };
    let mut labels = BTreeSet::new();
    while let Some((token, after)) = rest.split_first() {
        rest = after;
        match token {
            Token::Word(label) => drop(labels.insert(label.clone())),
            Token::Sign(',') => {}
            Token::Sign(')') => {
                *tokens = rest;
                return Ok(labels);
            }
            other => return Err(format!("{other:?} among labels")),
        }
    }
    Err("a list of labels without an end".to_owned())
}

/// What stands in braces, if there are any next.
fn matchers(tokens: &mut &[Token]) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut matched = BTreeMap::new();
    let Some((Token::Sign('{'), rest)) = tokens.split_first() else { return Ok(matched) };
    let end = rest.iter().position(|token| *token == Token::Sign('}')).ok_or("a brace without an end")?;
    for matcher in rest[..end].split(|token| *token == Token::Sign(',')) {
        match matcher {
            [] => {}
            [Token::Word(label), operator @ .., Token::Text(text)]
                if !operator.is_empty()
                    && operator.iter().all(|token| matches!(token, Token::Sign('=' | '!' | '~'))) =>
            {
                let words = if text.contains('$') { Vec::new() } else { text.split('|').map(str::to_owned).collect() };
                matched.insert(label.clone(), words);
            }
            other => return Err(format!("{other:?} in braces")),
        }
    }
    *tokens = &rest[end + 1..];
    Ok(matched)
}

/// All selectors of an expression, in its order.
pub(super) fn selectors(text: &str) -> Result<Vec<Selector>, String> {
    let all = tokens(text)?;
    let mut rest = all.as_slice();
    let mut found: Vec<Selector> = Vec::new();
    let group = |selectors: &mut [Selector], labels: &BTreeSet<String>| {
        selectors.iter_mut().for_each(|selector| selector.grouped.extend(labels.iter().cloned()));
    };
    // Parentheses that are open: the first selector in each, and the labels that were said before it.
    let mut open: Vec<(usize, BTreeSet<String>)> = Vec::new();
    let mut said = BTreeSet::new();
    // The first selector of the parentheses that were closed last.
    let mut closed = 0;
    while let Some((token, after)) = rest.split_first() {
        rest = after;
        match token {
            Token::Sign('(') => open.push((found.len(), std::mem::take(&mut said))),
            Token::Sign(')') => {
                let (first, labels) = open.pop().ok_or_else(|| format!("too many `)` in `{text}`"))?;
                group(&mut found[first..], &labels);
                closed = first;
            }
            Token::Sign('{') => return Err(format!("braces without a name in `{text}`")),
            Token::Word(word) => match (word.as_str(), rest.first()) {
                ("by" | "without", _) => {
                    let labels = label_list(&mut rest)?;
                    // `sum by (x) (...)` or `sum(...) by (x)`.
                    if rest.first() == Some(&Token::Sign('(')) {
                        said = labels;
                    } else {
                        group(&mut found[closed..], &labels);
                    }
                }
                ("on" | "ignoring" | "group_left" | "group_right", _) => {
                    return Err(format!("`{word}` in `{text}`: joins are not understood here"));
                }
                // An operator's word; a function or an aggregation.
                ("and" | "or" | "unless" | "bool" | "offset" | "inf" | "nan", _) | (_, Some(Token::Sign('('))) => {}
                (_, Some(Token::Word(next))) if next == "by" || next == "without" => {}
                _ => {
                    let matched = matchers(&mut rest)?;
                    let ranged = rest.first() == Some(&Token::Range);
                    found.push(Selector { metric: word.clone(), matched, grouped: BTreeSet::new(), ranged });
                }
            },
            _ => {}
        }
    }
    if open.is_empty() { Ok(found) } else { Err(format!("too few `)` in `{text}`")) }
}
