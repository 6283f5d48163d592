//! Values that may be written short: `run: ./send.sh` for `run: { command: ./send.sh }`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::{CheckpointsFile, FrequencyFile};
use crate::workflow::definition::{Approval, Call, Http, InputSpec, InputType, Llm, Retry, Run, Wait};
use crate::workflow::duration;

/// A value that is a map, or something short that stands for one.
#[derive(Debug)]
pub(super) struct Short<T>(pub(super) T);

/// What has a short form.
pub(super) trait ShortForm: Sized {
    /// What may stand there, both ways.
    const EXPECTED: &'static str;

    /// Returns the schema of the short form.
    fn schema(generator: &mut SchemaGenerator) -> Schema;

    fn of_text<E: Error>(text: &str) -> Result<Self, E> {
        Err(E::invalid_type(serde::de::Unexpected::Str(text), &Self::EXPECTED))
    }

    fn of_number<E: Error>(number: u64) -> Result<Self, E> {
        Err(E::invalid_type(serde::de::Unexpected::Unsigned(number), &Self::EXPECTED))
    }
}

impl<'de, T: ShortForm + Deserialize<'de>> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortVisitor(PhantomData))
    }
}

struct ShortVisitor<T>(PhantomData<T>);

impl<'de, T: ShortForm + Deserialize<'de>> Visitor<'de> for ShortVisitor<T> {
    type Value = Short<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Short<T>, E> {
        T::of_text(text).map(Short)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Short<T>, E> {
        T::of_number(number).map(Short)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Short<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Short)
    }
}

impl<T: ShortForm + JsonSchema> JsonSchema for Short<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrShort", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [T::schema(generator), generator.subschema_for::<T>()] })
    }
}

macro_rules! text_short_form {
    ($type:ty, $expected:literal, $of_text:expr) => {
        impl ShortForm for $type {
            const EXPECTED: &'static str = $expected;

            fn schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string" })
            }

            fn of_text<E: Error>(text: &str) -> Result<Self, E> {
                Ok(($of_text)(text.to_owned()))
            }
        }
    };
}

text_short_form!(Run, "a command as text, or a map with `command`", Run::new);
text_short_form!(Http, "an address as text, or a map with `url`", Http::new);
text_short_form!(Llm, "a prompt as text, or a map with `prompt` or `messages`", |prompt| {
    Llm { prompt: Some(prompt), ..Llm::default() }
});
text_short_form!(Approval, "a question as text, or a map with `message`", |message| Approval { message });
text_short_form!(Wait, "a duration such as `60s`, or a map with `for` or `until`", Wait::For);
text_short_form!(Call, "the name of a closure as text, or a map with `name`", |name| Call {
    name,
    with: serde_json::Value::Null
});

impl ShortForm for InputSpec {
    const EXPECTED: &'static str = "a type such as `string`, or a map with `type`";

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<InputType>()
    }

    fn of_text<E: Error>(text: &str) -> Result<Self, E> {
        InputType::deserialize(text.into_deserializer()).map(Self::from)
    }
}

impl ShortForm for CheckpointsFile {
    const EXPECTED: &'static str = "`always`, `manual`, or a map";

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<FrequencyFile>()
    }

    fn of_text<E: Error>(text: &str) -> Result<Self, E> {
        let frequency = FrequencyFile::deserialize(text.into_deserializer())?;
        Ok(Self { frequency: Some(frequency), ..Self::default() })
    }
}

impl ShortForm for Retry {
    const EXPECTED: &'static str = "a number of retries, or a map with `max`";

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0 })
    }

    fn of_number<E: Error>(number: u64) -> Result<Self, E> {
        u32::try_from(number)
            .map(Self::from)
            .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(number), &Self::EXPECTED))
    }
}

/// A list of texts; one alone may stand without brackets.
#[derive(Debug)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, or a list of names")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = items.next_element()? {
                    names.push(name);
                }
                Ok(OneOrMany(names))
            }
        }

        deserializer.deserialize_any(Names)
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// A condition: one expression, or `true` or `false` as such.
#[derive(Debug)]
pub(super) struct Condition(pub(super) String);

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expression;

        impl Visitor<'_> for Expression {
            type Value = Condition;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an expression as text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Condition, E> {
                Ok(Condition(text.to_owned()))
            }

            fn visit_bool<E: Error>(self, holds: bool) -> Result<Condition, E> {
                Ok(Condition(holds.to_string()))
            }
        }

        deserializer.deserialize_any(Expression)
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "boolean"] })
    }
}

/// From when on a node is a long one.
#[derive(Debug)]
pub(super) enum LongNode {
    Never,
    Than(Duration),
}

impl<'de> Deserialize<'de> for LongNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Threshold;

        impl Visitor<'_> for Threshold {
            type Value = LongNode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as `60s`, or `false`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<LongNode, E> {
                duration::parse_duration(text).map(LongNode::Than).map_err(E::custom)
            }

            fn visit_bool<E: Error>(self, wanted: bool) -> Result<LongNode, E> {
                if wanted {
                    return Err(E::invalid_value(serde::de::Unexpected::Bool(true), &self));
                }
                Ok(LongNode::Never)
            }
        }

        deserializer.deserialize_any(Threshold)
    }
}

impl JsonSchema for LongNode {
    fn schema_name() -> Cow<'static, str> {
        "LongNode".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "const": false }] })
    }
}
