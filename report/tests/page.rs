//! The page of whole runs: every section, plots that are SVG, nothing from elsewhere.

mod synthetic;

use holdfast_report::page;
use holdfast_report::run::{Pages, Row, Run};
use std::collections::BTreeSet;

const HEADINGS: [&str; 11] = [
    "Headline figures",
    "Machine and configuration",
    "Throughput by epoch",
    "Throughput by connections",
    "Completion time by size",
    "Latency of requests",
    "Applications",
    "Epochs on a time line",
    "Dirty pages of an epoch",
    "Lag of the guest&#39;s clock",
    "Side by side with what others published",
];

/// Documents of what single parts cost, with the headings of their sections and how many plots these have.
/// What a benchmark wrote, but for `pages`.
fn costs() -> [(Run, &'static str, usize); 4] {
    let read = |text| Run::read(text).expect("a run");
    [
        (read(include_str!("samples/pause.json")), "Pause", 5),
        (read(include_str!("samples/pps.json")), "Frames a second", 2),
        (pages(), "Pages to the other host", 3),
        (read(include_str!("samples/engine.json")), "Work by flows", 2),
    ]
}

/// Pages of some workloads on some ways: never measured.
fn pages() -> Run {
    let workloads = [
        ("sync", 4100.0, [1.1e9, 2.4e9, 0.9e9, 9e9]),
        ("idle", 700.0, [2e5, 2e5, 0.0, 0.0]),
        ("redis", 1500.0, [9e7, 1.1e8, 0.0, 0.0]),
        ("copies", 300.0, [6e8, 8e8, 0.0, 0.0]),
    ];
    let mut run = Run { bench: "pages".into(), ..Run::default() };
    for (workload, wire_bytes, rates) in workloads {
        let ways = ["tcp", "bypass", "qemu", "memcpy"].into_iter().zip(rates);
        for (path, payload_bytes_s) in ways.filter(|(_, rate)| *rate > 0.0) {
            let wire_bytes_per_page = (path != "memcpy").then_some(wire_bytes);
            let stages = [("apply", 2.0), ("capture", 7.0), ("send", 1.5)];
            let more =
                stages.map(|(of, times)| (format!("{of}_bytes_s_core"), (payload_bytes_s * times).into()));
            run.rows.push(Row::Pages(Pages {
                path: path.into(),
                workload: workload.into(),
                guest_mib: Some(512),
                payload_bytes_s,
                wire_bytes_per_page,
                more: more.into_iter().collect(),
            }));
        }
    }
    run
}

/// The text of each plot.
fn drawn(page: &str) -> impl Iterator<Item = &str> {
    page.split("<div role=\"img\"").skip(1).map(|part| {
        let from = part.find("<svg").expect("a plot has a beginning");
        let to = part.find("</svg>").expect("a plot has an end") + "</svg>".len();
        &part[from..to]
    })
}

/// All plots, parsed; a plot that is no XML ends the test.
fn plots(page: &str) -> Vec<(usize, usize)> {
    drawn(page)
        .map(|plot| {
            let document = roxmltree::Document::parse(plot).expect("a plot is XML");
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
    // 2 numbers of connections, 3 by connections with their fairness, 6 of completion, 3 + 2 of latency, 2 of
    // applications, 6 time lines, pages, clock.
    let plots = plots(&page);
    assert_eq!(plots.len(), 2 + 6 + 6 + 5 + 2 + 6 + 2);
    assert!(plots.iter().all(|(marks, text)| *marks > 20 && *text > 4), "{plots:?}");
}

#[test]
fn a_run_of_costs_has_its_own_section_alone() {
    for (run, heading, count) in costs() {
        let page = page::render(&run);
        std::fs::write(format!("{}/{}.html", env!("CARGO_TARGET_TMPDIR"), run.bench), &page).unwrap();
        let headings: Vec<&str> =
            page.split("<h2>").skip(1).filter_map(|part| Some(part.split_once("</h2>")?.0)).collect();
        assert_eq!(headings, ["Machine and configuration", heading]);
        let plots = plots(&page);
        assert_eq!(plots.len(), count, "{heading}");
        assert!(plots.iter().all(|(marks, text)| *marks > 10 && *text > 4), "{heading}: {plots:?}");
        for word in ["This run has no", "NaN", ">inf", "infinity", "null"] {
            assert!(!page.contains(word), "{word} is in the page of {heading}");
        }
    }
}

#[test]
fn runs_of_one_page_keep_their_anchors_apart() {
    let mut runs = Vec::from(costs().map(|(run, ..)| run));
    runs.push(runs[0].clone());
    let page = page::render_all(&runs);
    let named = |what: &str| -> Vec<&str> {
        page.split(what).skip(1).filter_map(|part| Some(part.split_once('"')?.0)).collect()
    };
    let (ids, links) = (named(" id=\""), named("href=\"#"));
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert_eq!(ids, links);
    assert_eq!(ids.len(), 2 * runs.len());
    let single: usize = runs.iter().map(|run| plots(&page::render(run)).len()).sum();
    assert_eq!(plots(&page).len(), single);
}

/// Where a text lies in its plot: left, right, and its middle from top to bottom, in pixels.
fn place(text: &roxmltree::Node<'_, '_>) -> (f64, f64, f64) {
    let number = |name| text.attribute(name).and_then(|value| value.parse::<f64>().ok()).expect("a number");
    let said = text.text().unwrap_or_default().trim().chars().count() as f64;
    let width = said * number("font-size") * 0.5;
    let left = match text.attribute("text-anchor") {
        Some("middle") => number("x") - width / 2.0,
        Some("end") => number("x") - width,
        _ => number("x"),
    };
    (left, left + width, number("y"))
}

#[test]
fn words_in_a_plot_of_costs_are_within_it_and_do_not_run_into_each_other() {
    for (run, heading, _) in costs() {
        let page = page::render(&run);
        for plot in drawn(&page) {
            let document = roxmltree::Document::parse(plot).expect("a plot is XML");
            let wide: f64 =
                document.root_element().attribute("width").and_then(|of| of.parse().ok()).unwrap();
            let is_upright = |node: &roxmltree::Node<'_, '_>| node.attribute("transform").is_none();
            let texts = document.descendants().filter(|node| node.tag_name().name() == "text");
            let mut places: Vec<(f64, f64, f64)> =
                texts.filter(is_upright).map(|text| place(&text)).collect();
            assert!(
                places.iter().all(|(left, right, _)| *left >= 0.0 && *right <= wide),
                "{heading}: {places:?}"
            );
            places.sort_by(|one, other| one.0.total_cmp(&other.0));
            for (at, one) in places.iter().enumerate() {
                let beside = places[at + 1..].iter().find(|other| (other.2 - one.2).abs() < 10.0);
                assert!(beside.is_none_or(|other| other.0 >= one.1), "{heading}: {one:?} {beside:?}");
            }
        }
    }
}

#[test]
fn nothing_is_fetched_and_nothing_runs() {
    let mut runs = Vec::from(costs().map(|(run, ..)| run));
    runs.push(synthetic::run(2, 1.0));
    let page = page::render_all(&runs);
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
            Row::Pause(_) | Row::Pps(_) | Row::Pages(_) | Row::Engine(_) | Row::Unknown => {}
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
fn what_could_not_be_measured_is_told() {
    let refused = vec!["a guest of 8 TiB: it needs more".to_owned()];
    let page = page::render(&Run { bench: "pause".into(), refused, ..Run::default() });
    assert!(page.contains("a guest of 8 TiB: it needs more"));
}

#[test]
fn a_stream_that_was_not_exact_is_told_before_all_else() {
    let mut run = synthetic::run(5, 1.0);
    if let Some(Row::Stream(row)) = run.rows.first_mut() {
        row.stream_exact = false;
    }
    assert!(page::render(&run).contains("of a broken Holdfast"));
}
