//! The page of a whole run: every section, plots that are SVG, nothing from elsewhere.

mod synthetic;

use holdfast_report::page;
use holdfast_report::run::{Row, Run};

const HEADINGS: [&str; 10] = [
    "Headline figures",
    "Machine and configuration",
    "Throughput by epoch",
    "Completion time by size",
    "Latency of requests",
    "Applications",
    "Epochs on a time line",
    "Dirty pages of an epoch",
    "Lag of the guest&#39;s clock",
    "Side by side with what others published",
];

/// All plots, parsed; a plot that is no XML ends the test.
fn plots(page: &str) -> Vec<(usize, usize)> {
    let parts = page.split("<div role=\"img\"").skip(1);
    parts
        .map(|part| {
            let from = part.find("<svg").expect("a plot has a beginning");
            let to = part.find("</svg>").expect("a plot has an end") + "</svg>".len();
            let document = roxmltree::Document::parse(&part[from..to]).expect("a plot is XML");
            assert_eq!(document.root_element().tag_name().name(), "svg");
            let named =
                |name: &str| document.descendants().filter(|node| node.tag_name().name() == name).count();
            let marks = ["polyline", "circle", "rect", "line"].into_iter().map(named).sum();
            assert_eq!(named("script"), 0);
            (marks, named("text"))
        })
        .collect()
}

#[test]
fn a_whole_run_fills_every_section() {
    let page = page::render(&synthetic::run(1, 1.0));
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/synthetic.html"), &page).unwrap();
    for heading in HEADINGS {
        let heading = heading.replace("&#39;", "'");
        assert!(page.contains(&format!("{heading}</h2>")), "{heading}");
    }
    assert!(!page.contains("This run has no"), "a section is empty");
    for word in ["NaN", ">inf", "infinity", "null"] {
        assert!(!page.contains(word), "{word} is in the page");
    }
    // 2 numbers of connections, 6 of completion, 3 + 2 of latency, 2 of applications, 6 time lines, pages, clock.
    let plots = plots(&page);
    assert_eq!(plots.len(), 2 + 6 + 5 + 2 + 6 + 2);
    assert!(plots.iter().all(|(marks, text)| *marks > 20 && *text > 4), "{plots:?}");
}

#[test]
fn nothing_is_fetched_and_nothing_runs() {
    let page = page::render(&synthetic::run(2, 1.0));
    for word in ["<script", "<link", "<img", "<iframe", "@import", "url(", " src=", "onload"] {
        assert!(!page.contains(word), "{word} is in the page");
    }
}

#[test]
fn a_run_of_nothing_says_so_in_each_section() {
    let page = page::render(&Run { bench: "paper".into(), ..Run::default() });
    assert_eq!(page.matches("This run has no").count(), 7);
    assert!(page.contains("not measured") && !page.contains("NaN"));
}

#[test]
fn figures_that_are_none_do_not_break_a_plot() {
    let mut run = synthetic::run(3, 1.0);
    for row in &mut run.rows {
        match row {
            Row::Stream(row) => (row.throughput_mbit_s, row.samples) = (f64::NAN, vec![f64::NAN, 0.0]),
            Row::Transfer(row) => (row.samples, row.completion_p50_ms) = (vec![0.0, f64::INFINITY], None),
            Row::Application(row) => (row.requests_s, row.mbit_s) = (Some(0.0), None),
            Row::Latency(row) => row.histogram = Some("not a histogram".into()),
            Row::Unknown => {}
        }
    }
    run.epochs[0].epochs.truncate(1);
    run.clock[0].guest_clock_lag_ppm = Some(0.0);
    let page = page::render(&run);
    assert!(!page.contains("NaN") && !page.contains(">inf"));
    assert!(page.contains("no HDR histogram"));
    plots(&page);
}

#[test]
fn what_a_run_says_is_text_and_not_markup() {
    let mut run = synthetic::run(4, 1.0);
    run.machine.cpu = Some("<script>alert(1)</script> & co".into());
    for row in &mut run.rows {
        if let Row::Application(row) = row {
            row.app = "<b>\"x\"</b>".into();
        }
    }
    let page = page::render(&run);
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains("<b>"));
    plots(&page);
}

#[test]
fn a_stream_that_was_not_exact_is_told_before_all_else() {
    let mut run = synthetic::run(5, 1.0);
    if let Some(Row::Stream(row)) = run.rows.first_mut() {
        row.stream_exact = false;
    }
    assert!(page::render(&run).contains("of a broken Holdfast"));
}
