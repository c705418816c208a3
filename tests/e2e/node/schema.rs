//! Holds a JSON value to a schema of `openapi.json`. Knows the keywords that stand there and no
//! other, and is stricter than JSON Schema: a field that the schema does not name is an error.

use serde_json::{Map, Value};

/// Keywords that say nothing about a value.
const PROSE: &[&str] = &["description", "default", "discriminator"];

/// Checks `value` against `schema`, which may refer to others of `document`.
pub fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    Checker { document }.value(schema, value, "$")
}

struct Checker<'a> {
    document: &'a Value,
}

impl<'a> Checker<'a> {
    fn resolve(&self, schema: &'a Value) -> &'a Map<String, Value> {
        let schema = match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').expect("a reference into this document");
                self.document.pointer(pointer).unwrap_or_else(|| panic!("`{reference}` leads nowhere"))
            }
            None => schema,
        };
        schema.as_object().expect("a schema")
    }

    fn value(&self, schema: &'a Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        if let Some(object) = value.as_object()
            && !schema.contains_key("oneOf")
        {
            self.named(schema, object, at)?;
        }
        self.rules(schema, value, at)
    }

    /// Every field of the object is one that the schema names.
    fn named(&self, schema: &'a Map<String, Value>, object: &Map<String, Value>, at: &str) -> Result<(), String> {
        if schema.get("additionalProperties").is_some_and(Value::is_object) || !self.describes(schema) {
            return Ok(());
        }
        match object.keys().find(|name| !self.names(schema, name)) {
            Some(name) => Err(format!("{at}: `{name}` is not in the schema")),
            None => Ok(()),
        }
    }

    /// Whether the schema says which fields there are at all.
    fn describes(&self, schema: &'a Map<String, Value>) -> bool {
        schema.contains_key("properties") || self.parts(schema).any(|part| self.describes(part))
    }

    fn names(&self, schema: &'a Map<String, Value>, name: &str) -> bool {
        schema.get("properties").is_some_and(|properties| properties.get(name).is_some())
            || self.parts(schema).any(|part| self.names(part, name))
    }

    fn parts(&self, schema: &'a Map<String, Value>) -> impl Iterator<Item = &'a Map<String, Value>> {
        schema.get("allOf").and_then(Value::as_array).into_iter().flatten().map(|part| self.resolve(part))
    }

    fn rules(&self, schema: &'a Map<String, Value>, value: &Value, at: &str) -> Result<(), String> {
        let wrong = |what: String| Err(format!("{at}: {what}: {value}"));
        for (keyword, rule) in schema {
            match keyword.as_str() {
                "type" => {
                    let known = |name: &Value| is_of_type(value, name.as_str().expect("a type"));
                    if !rule.as_array().map_or_else(|| known(rule), |names| names.iter().any(known)) {
                        return wrong(format!("want {rule}"));
                    }
                }
                "const" if value != rule => return wrong(format!("want {rule}")),
                "enum" if !rule.as_array().expect("a list").contains(value) => {
                    return wrong(format!("want one of {rule}"));
                }
                "const" | "enum" => {}
                "minimum" | "maximum" => {
                    let (limit, least) = (rule.as_f64().expect("a number"), keyword == "minimum");
                    if value.as_f64().is_some_and(|number| if least { number < limit } else { number > limit }) {
                        return wrong(format!("want a {keyword} of {rule}"));
                    }
                }
                "minItems" | "maxItems" => {
                    let (limit, least) = (rule.as_u64().expect("a number"), keyword == "minItems");
                    if value.as_array().is_some_and(|items| {
                        if least { (items.len() as u64) < limit } else { items.len() as u64 > limit }
                    }) {
                        return wrong(format!("want {keyword} {rule}"));
                    }
                }
                "maxLength" => {
                    if value.as_str().is_some_and(|text| text.chars().count() as u64 > rule.as_u64().expect("a number"))
                    {
                        return wrong(format!("want at most {rule} characters"));
                    }
                }
                "pattern" => {
                    if value.as_str().is_some_and(|text| !matches_pattern(rule.as_str().expect("a pattern"), text)) {
                        return wrong(format!("want {rule}"));
                    }
                }
                "required" => {
                    for name in rule.as_array().expect("names") {
                        let name = name.as_str().expect("a name");
                        if value.as_object().is_some_and(|object| !object.contains_key(name)) {
                            return wrong(format!("`{name}` is missing"));
                        }
                    }
                }
                "properties" => {
                    for (name, schema) in rule.as_object().expect("schemas") {
                        if let Some(value) = value.get(name) {
                            self.value(schema, value, &format!("{at}.{name}"))?;
                        }
                    }
                }
                // Where it is false, `named` has said so already.
                "additionalProperties" => {
                    for (name, value) in value.as_object().into_iter().flatten().filter(|_| rule.is_object()) {
                        self.value(rule, value, &format!("{at}.{name}"))?;
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.value(rule, item, &format!("{at}[{index}]"))?;
                    }
                }
                "allOf" => {
                    for part in self.parts(schema) {
                        self.rules(part, value, at)?;
                    }
                }
                "oneOf" => {
                    let tried: Vec<_> =
                        rule.as_array().expect("schemas").iter().map(|schema| self.value(schema, value, at)).collect();
                    if tried.iter().filter(|result| result.is_ok()).count() != 1 {
                        return wrong(format!("want one of these: {tried:?}"));
                    }
                }
                prose if PROSE.contains(&prose) => {}
                other => panic!("{at}: the checker does not know `{other}`"),
            }
        }
        Ok(())
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("`{other}` is no type"),
    }
}

/// The patterns that stand in the file, read by hand.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[0-9a-f]{64}$" => text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
        other => panic!("the checker does not know the pattern `{other}`"),
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    use serde_json::json;
    let document = json!({"x": {
        "type": "object",
        "properties": {"n": {"type": ["integer", "null"], "minimum": 2}, "w": {"enum": ["a", "b"]}},
        "required": ["n"],
    }});
    let schema = json!({"type": "array", "items": {"$ref": "#/x"}});
    let checked = |value: &Value| check(&document, &schema, value);
    assert_eq!(checked(&json!([{"n": 2, "w": "a"}, {"n": null}])), Ok(()));
    for (value, said) in [
        (json!({}), "want \"array\""),
        (json!([{"w": "a"}]), "`n` is missing"),
        (json!([{"n": 1}]), "want a minimum of 2"),
        (json!([{"n": 2.5}]), "want [\"integer\",\"null\"]"),
        (json!([{"n": 2, "w": "c"}]), "want one of [\"a\",\"b\"]"),
        (json!([{"n": 2, "other": 1}]), "`other` is not in the schema"),
    ] {
        let told = checked(&value).expect_err("wrong");
        assert!(told.contains(said), "{told}");
    }
    let both = json!({"oneOf": [{"$ref": "#/x"}, {"allOf": [{"$ref": "#/x"}, {"properties": {"y": {"type": "string"}}, "required": ["y"]}]}]});
    assert_eq!(check(&document, &both, &json!({"n": 3, "y": ""})), Ok(()));
    assert_eq!(check(&document, &both, &json!({"n": 3})), Ok(()));
    assert!(check(&document, &both, &json!({"n": 3, "z": ""})).is_err());
}
