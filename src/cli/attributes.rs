//! The attributes of an event as flags, for the commands that make one.

use std::collections::BTreeMap;

use super::values::parse_pair;
use crate::proto::cloudevents::CloudEvent;
use crate::proto::cloudevents::cloud_event::CloudEventAttributeValue;
use crate::proto::cloudevents::cloud_event::cloud_event_attribute_value::Attr;

/// What an event says of itself besides its type and its data.
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub struct AttributeArgs {
    /// CloudEvents source: a URI reference that says where the event comes from [default: /carillon/cli for one that is published,
    /// /carillon/test otherwise]
    #[arg(long, value_name = "URI")]
    pub source: Option<String>,
    /// CloudEvents subject: what the event is about
    #[arg(long)]
    subject: Option<String>,
    /// An extension attribute; may be given several times
    #[arg(long, value_parser = parse_pair, value_name = "NAME=VALUE")]
    extension: Vec<(String, String)>,
}

impl AttributeArgs {
    /// An event with these attributes and nothing else.
    pub fn event(self) -> CloudEvent {
        let mut attributes: BTreeMap<_, _> =
            self.extension.into_iter().map(|(name, value)| (name, string(value))).collect();
        attributes.extend(self.subject.map(|subject| ("subject".to_owned(), string(subject))));
        let source = self.source.unwrap_or_default();
        CloudEvent { source, spec_version: "1.0".to_owned(), attributes, ..CloudEvent::default() }
    }
}

/// A string attribute of a CloudEvent.
pub fn string(text: impl Into<String>) -> CloudEventAttributeValue {
    CloudEventAttributeValue { attr: Some(Attr::CeString(text.into())) }
}
