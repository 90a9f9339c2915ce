from importlib.resources import files


def test_the_compas_list_names_what_came_after_the_screening_and_nothing_before():
    names = (files("steepest.comparison") / "examples" / "compas-drop.txt").read_text().split("\n")[:-1]
    assert len(names) == len(set(names))
    later = {"is_recid", "is_violent_recid", "violent_recid", "in_custody", "out_custody", "start", "end", "event"}
    assert later | {"id", "name", "r_case_number", "vr_charge_desc"} <= set(names)
    known = {"two_year_recid", "sex", "age", "race", "priors_count", "c_charge_degree", "decile_score", "score_text"}
    assert not known & set(names)
