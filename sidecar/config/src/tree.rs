//! A YAML document with the place of every node.

// The parser's events are not ours and may grow.
#![allow(clippy::wildcard_enum_match_arm)]

use granit_parser::{Event, Parser, Span};

/// A node and where it begins; lines and columns count from 1.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// Deepest nesting that is read; the configuration has four levels.
const MAX_DEPTH: usize = 32;

/// Reads the only document of a text. The error is a place and a sentence.
pub(crate) fn read(text: &str) -> Result<Option<Node>, (usize, usize, String)> {
    let mut events = Vec::new();
    for event in Parser::new_from_str(text) {
        match event {
            Ok(event) => events.push(event),
            Err(error) => {
                let place = error.marker();
                return Err((
                    place.line(),
                    place.col() + 1,
                    format!("this is not YAML: {}", error.info()),
                ));
            }
        }
    }
    let mut reader = Reader { events: events.into_iter().peekable() };
    reader.document()
}

struct Reader<'a, I: Iterator<Item = (Event<'a>, Span)>> {
    events: std::iter::Peekable<I>,
}

type Failure = (usize, usize, String);

impl<'a, I: Iterator<Item = (Event<'a>, Span)>> Reader<'a, I> {
    fn document(&mut self) -> Result<Option<Node>, Failure> {
        let mut found = None;
        while let Some((event, span)) = self.events.peek() {
            match event {
                Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::MappingStart(..)
                | Event::Alias(..) => {
                    if found.is_some() {
                        return Err((
                            span.start.line(),
                            1,
                            "the file holds more than one document".to_owned(),
                        ));
                    }
                    found = Some(self.node(0)?);
                }
                _ => {
                    self.events.next();
                }
            }
        }
        Ok(found)
    }

    fn node(&mut self, depth: usize) -> Result<Node, Failure> {
        let Some((event, span)) = self.events.next() else {
            return Err((1, 1, "the file ends early".to_owned()));
        };
        let (line, column) = (span.start.line(), span.start.col() + 1);
        if depth > MAX_DEPTH {
            return Err((line, column, "nested too deeply".to_owned()));
        }
        let value = match event {
            Event::Scalar(text, ..) => Value::Scalar(text.into_owned()),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                while !matches!(self.events.peek(), Some((Event::SequenceEnd, _)) | None) {
                    items.push(self.node(depth + 1)?);
                }
                self.events.next();
                Value::List(items)
            }
            Event::MappingStart(..) => {
                let mut entries = Vec::new();
                while !matches!(self.events.peek(), Some((Event::MappingEnd, _)) | None) {
                    let key = self.node(depth + 1)?;
                    entries.push((key, self.node(depth + 1)?));
                }
                self.events.next();
                Value::Map(entries)
            }
            _ => {
                return Err((
                    line,
                    column,
                    "anchors and aliases are not used here: write the value out".to_owned(),
                ));
            }
        };
        Ok(Node { line, column, value })
    }
}
