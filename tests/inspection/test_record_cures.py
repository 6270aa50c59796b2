from kdtoolbox.inspection.record_cures import as_glob


def test_globs_need_paths_that_count_up_in_one_digit() -> None:
    assert as_glob(['neck.fpn_convs.0']) == 'neck.fpn_convs.0'
    assert as_glob([f'backbone.layer{i}' for i in (2, 3, 4)]) == 'backbone.layer[2-4]'
    assert as_glob(['a.1', 'a.3']) == ''
    assert as_glob(['a.8', 'a.9', 'a.10']) == ''
    assert as_glob(['neck', 'backbone']) == ''
    assert as_glob([]) == ''
